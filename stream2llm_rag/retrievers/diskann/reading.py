"""What every way of reading nodes has in common: its shape, and how files are opened and buffers aligned."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from stream2llm_rag.retrievers.diskann.layout import SECTOR_BYTES, Geometry
from stream2llm_rag.retrievers.diskann.matrices import Array
from stream2llm_rag.retrievers.diskann.state import State

MAX_BEAM_WIDTH = 64


class Lane(Protocol):
    """What one search reads through; used by one thread at a time."""

    def advance(self, state: State, num_hops: int) -> None:
        """Do up to ``num_hops`` hops, fewer where the search ends. What goes wrong is noted in ``state``."""
        ...

    def close(self) -> None:
        """Wait for what is under way, and free what the lane holds."""
        ...


class Reader(Protocol):
    """The file of one index. ``hops_per_snapshot``: a snapshot takes 15 microseconds, which is to be little beside the hops."""

    kind: str
    hops_per_snapshot: int

    def open_lane(self) -> Lane:
        """A lane for one more search at a time. RetrievalError where the system refuses it."""
        ...

    def close(self) -> None:
        """Close the file; all lanes are closed by then."""
        ...


def map_file(path: Path) -> Array:
    """The bytes of a file, u8[file size], for reading. Unmapped with the last reference to them."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def open_directly(path: Path) -> int:
    """Open a file past the page cache, or through it where the file system (tmpfs, say) has no other way."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, os.O_RDONLY)


def aligned_buffer(geometry: Geometry) -> Array:
    """Room for the widest beam, u8[MAX_BEAM_WIDTH * sectors * 4096], from the start of a page on."""
    return np.frombuffer(mmap.mmap(-1, MAX_BEAM_WIDTH * geometry.sectors_per_node * SECTOR_BYTES), np.uint8)
