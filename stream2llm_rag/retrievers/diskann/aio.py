"""Linux's asynchronous reads past the page cache: ``io_submit(2)``, called from compiled code."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import numpy as np

from stream2llm_rag.errors import RetrievalError
from stream2llm_rag.retrievers.diskann import kernels
from stream2llm_rag.retrievers.diskann.layout import Geometry
from stream2llm_rag.retrievers.diskann.reading import MAX_BEAM_WIDTH, Lane, aligned_buffer, open_directly
from stream2llm_rag.retrievers.diskann.state import Requests, State


class _SystemCalls:
    """Numbers of ``io_setup``, ``io_destroy``, ``io_getevents`` and ``io_submit`` (asm/unistd.h)."""

    x86_64 = (206, 207, 208, 209)
    aarch64 = (0, 1, 4, 2)


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
        self._file = open_directly(path)
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
        buffer = aligned_buffer(geometry)
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
