"""Bring nodes from the disk to the search: Linux's asynchronous reads, threads that read, or the file in memory.

A :class:`Reader` belongs to an index, a :class:`Lane` to one search at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from stream2llm_rag.errors import InvalidInputError, RetrievalError
from stream2llm_rag.retrievers.diskann import kernels
from stream2llm_rag.retrievers.diskann.aio import AioReader
from stream2llm_rag.retrievers.diskann.layout import SECTOR_BYTES, Geometry
from stream2llm_rag.retrievers.diskann.reading import Lane, Reader, aligned_buffer, map_file, open_directly
from stream2llm_rag.retrievers.diskann.state import ERROR, ERROR_NODE, READ_SHORT, State

logger = logging.getLogger(__name__)

ReaderKind: TypeAlias = Literal["auto", "aio", "threads", "memory"]
READER_KINDS: tuple[ReaderKind, ...] = get_args(ReaderKind)

_RESIDENT_SHARE = 0.99
_NUM_IO_THREADS = 16


def open_reader(path: Path, geometry: Geometry, kind: ReaderKind) -> Reader:
    """Open the nodes of an index. ``auto`` takes ``memory`` where the file is in the page cache, else the fastest that
    works.
    """
    if kind not in READER_KINDS:
        raise InvalidInputError(f"reader is one of {', '.join(READER_KINDS)}, but {kind!r} came.")
    if kind == "memory" or (kind == "auto" and resident_share(path) >= _RESIDENT_SHARE):
        return MemoryReader(path, geometry)
    if kind == "threads":
        return ThreadReader(path, geometry)
    try:
        return AioReader(path, geometry)
    except RetrievalError:
        if kind == "aio":
            raise
        logger.debug("no asynchronous reads here, threads read instead", exc_info=True)
        return ThreadReader(path, geometry)


def resident_share(path: Path) -> float:
    """The share of a file's pages that is in memory, by ``mincore(2)``; 0 where the system does not tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mincore"):
        return 0.0
    view = map_file(path)
    pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
    address = ctypes.c_void_p(view.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(len(view)), pages) != 0:
        return 0.0
    return float(np.mean(np.frombuffer(bytes(pages), np.uint8) & 1))


class MemoryReader:
    """Maps the file. Nothing is copied, and what is not in memory yet is read as it is touched: fast only where it is there.

    The file must not be cut off while it is mapped: touching what is gone ends the process (SIGBUS).
    """

    kind = "memory"
    hops_per_snapshot = 8

    def __init__(self, path: Path, geometry: Geometry) -> None:
        self._geometry = geometry
        self._file = map_file(path)

    def open_lane(self) -> Lane:
        """A lane holds nothing of its own."""
        return self

    def advance(self, state: State, num_hops: int) -> None:
        """Hops over the mapped file."""
        kernels.hop_in_memory(self._geometry, state, self._file, num_hops)

    def close(self) -> None:
        """The mapping goes with the last search that uses it."""


class ThreadReader:
    """Reads by ``preadv(2)`` in threads, past the page cache where the file system allows it."""

    kind = "threads"
    hops_per_snapshot = 1

    def __init__(self, path: Path, geometry: Geometry) -> None:
        self._geometry = geometry
        self._file = open_directly(path)
        self._threads = ThreadPoolExecutor(_NUM_IO_THREADS, "diskann-read")

    def open_lane(self) -> Lane:
        """A buffer."""
        return _ThreadLane(self._geometry, self._file, self._threads)

    def close(self) -> None:
        """End the threads and close the file."""
        self._threads.shutdown()
        os.close(self._file)


class _ThreadLane:
    def __init__(self, geometry: Geometry, file: int, threads: ThreadPoolExecutor) -> None:
        self._geometry = geometry
        self._file = file
        self._threads = threads
        self._buffer = aligned_buffer(geometry)

    def advance(self, state: State, num_hops: int) -> None:
        while num_hops > 0 and not kernels.is_done(state):
            num_hops -= 1
            num_beam = kernels.take_beam(state)
            lengths = list(self._threads.map(self._read, range(num_beam), state.beam_ids[:num_beam]))
            if any(length != self._stride for length in lengths):
                state.counters[ERROR] = READ_SHORT
                state.counters[ERROR_NODE] = state.beam_ids[0]
                return
            kernels.expand_beam(self._geometry, state, self._buffer)

    def close(self) -> None:
        pass

    @property
    def _stride(self) -> int:
        return self._geometry.sectors_per_node * SECTOR_BYTES

    def _read(self, place: int, node: Any) -> int:
        into = self._buffer[place * self._stride : (place + 1) * self._stride].data
        with contextlib.suppress(OSError):
            return os.preadv(self._file, [into], kernels.first_sector(self._geometry, int(node)) * SECTOR_BYTES)
        return 0


class SlowedLane:
    """Another lane, ``hop_delay_s`` seconds later at each hop: what a search over a slower store looks like."""

    def __init__(self, lane: Lane, hop_delay_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._lane = lane
        self._hop_delay_s = hop_delay_s
        self._sleep = sleep

    def advance(self, state: State, num_hops: int) -> None:
        """Advance the lane, and wait after each hop."""
        while num_hops > 0 and not kernels.is_done(state):
            num_hops -= 1
            self._lane.advance(state, 1)
            self._sleep(self._hop_delay_s)

    def close(self) -> None:
        """Close the lane."""
        self._lane.close()
