"""Bring nodes from the disk to the search: Linux's asynchronous reads, threads that read, or the file in memory.

A :class:`Reader` belongs to an index, a :class:`Lane` to one search at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from stream2llm_rag.errors import InvalidInputError, RetrievalError
from stream2llm_rag.retrievers.diskann import kernels
from stream2llm_rag.retrievers.diskann.kernels import Requests, State
from stream2llm_rag.retrievers.diskann.layout import SECTOR_BYTES, Array, Geometry

logger = logging.getLogger(__name__)

ReaderKind: TypeAlias = Literal["auto", "aio", "threads", "memory"]
READER_KINDS: tuple[ReaderKind, ...] = get_args(ReaderKind)

MAX_BEAM_WIDTH = 64
_RESIDENT_SHARE = 0.99
_NUM_IO_THREADS = 16


class _SystemCalls:
    """Numbers of ``io_setup``, ``io_destroy``, ``io_getevents`` and ``io_submit`` (asm/unistd.h)."""

    x86_64 = (206, 207, 208, 209)
    aarch64 = (0, 1, 4, 2)


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
    view = _map(path)
    pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
    address = ctypes.c_void_p(view.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(len(view)), pages) != 0:
        return 0.0
    return float(np.mean(np.frombuffer(bytes(pages), np.uint8) & 1))


def _map(path: Path) -> Array:
    """The bytes of a file, u8[file size], for reading. Unmapped with the last reference to them."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class MemoryReader:
    """Maps the file. Nothing is copied, and what is not in memory yet is read as it is touched: fast only where it is there.

    The file must not be cut off while it is mapped: touching what is gone ends the process (SIGBUS).
    """

    kind = "memory"
    hops_per_snapshot = 8

    def __init__(self, path: Path, geometry: Geometry) -> None:
        self._geometry = geometry
        self._file = _map(path)

    def open_lane(self) -> Lane:
        """A lane holds nothing of its own."""
        return self

    def advance(self, state: State, num_hops: int) -> None:
        """Hops over the mapped file."""
        kernels.hop_in_memory(self._geometry, state, self._file, num_hops)

    def close(self) -> None:
        """The mapping goes with the last search that uses it."""


class AioReader:
    """Reads by ``io_submit(2)`` past the page cache, all nodes of a beam at once. Linux on x86-64 and aarch64."""

    kind = "aio"
    hops_per_snapshot = 2

    def __init__(self, path: Path, geometry: Geometry) -> None:
        calls = getattr(_SystemCalls, platform.machine(), None)
        if not sys.platform.startswith("linux") or calls is None:
            raise RetrievalError(
                f"Asynchronous reads are not known on {sys.platform} {platform.machine()}. Write reader='threads'."
            )
        self._calls = calls
        self._geometry = geometry
        self._file = _open_directly(path)
        try:
            self.open_lane().close()
        except RetrievalError:
            self.close()
            raise

    def open_lane(self) -> Lane:
        """A context of the kernel's, and a buffer."""
        return _AioLane(self._geometry, self._file, self._calls)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class _AioLane:
    def __init__(self, geometry: Geometry, file: int, calls: tuple[int, int, int, int]) -> None:
        setup, self._destroy, getevents, submit = calls
        self._geometry = geometry
        self._libc = ctypes.CDLL(None, use_errno=True)
        context = ctypes.c_ulong(0)
        if self._libc.syscall(ctypes.c_long(setup), ctypes.c_long(MAX_BEAM_WIDTH), ctypes.byref(context)) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise RetrievalError(f"io_setup failed: {reason}. Write reader='threads', or raise /proc/sys/fs/aio-max-nr.")
        self._context: int | None = context.value
        buffer = _aligned_buffer(geometry)
        iocbs = np.zeros((MAX_BEAM_WIDTH, 8), np.int64)
        pointers = iocbs.ctypes.data + 64 * np.arange(MAX_BEAM_WIDTH, dtype=np.int64)
        events = np.zeros((MAX_BEAM_WIDTH, 4), np.int64)
        address = buffer.ctypes.data
        self._requests = Requests(file, context.value, submit, getevents, buffer, address, iocbs, pointers, events)

    def advance(self, state: State, num_hops: int) -> None:
        kernels.hop_by_requests(self._geometry, state, self._requests, num_hops)

    def close(self) -> None:
        """``io_destroy(2)`` waits for reads that are under way; only then may the buffer go."""
        if self._context is not None:
            self._libc.syscall(ctypes.c_long(self._destroy), ctypes.c_ulong(self._context))
            self._context = None


class ThreadReader:
    """Reads by ``preadv(2)`` in threads, past the page cache where the file system allows it."""

    kind = "threads"
    hops_per_snapshot = 1

    def __init__(self, path: Path, geometry: Geometry) -> None:
        self._geometry = geometry
        self._file = _open_directly(path)
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
        self._buffer = _aligned_buffer(geometry)

    def advance(self, state: State, num_hops: int) -> None:
        while num_hops > 0 and not kernels.is_done(state):
            num_hops -= 1
            num_beam = kernels.take_beam(state)
            lengths = list(self._threads.map(self._read, range(num_beam), state.beam_ids[:num_beam]))
            if any(length != self._stride for length in lengths):
                state.counters[kernels.ERROR] = kernels.READ_SHORT
                state.counters[kernels.ERROR_NODE] = state.beam_ids[0]
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


def _open_directly(path: Path) -> int:
    """Open a file past the page cache, or through it where the file system (tmpfs, say) has no other way."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, os.O_RDONLY)


def _aligned_buffer(geometry: Geometry) -> Array:
    """Room for the widest beam, u8[MAX_BEAM_WIDTH * sectors * 4096], from the start of a page on."""
    return np.frombuffer(mmap.mmap(-1, MAX_BEAM_WIDTH * geometry.sectors_per_node * SECTOR_BYTES), np.uint8)
