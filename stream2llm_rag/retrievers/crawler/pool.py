"""The extraction processes of a crawler: a few workers, each with one page at a time, replaced when they hang or die.

A worker is a fresh interpreter that runs :mod:`.worker` and nothing of the user's program. ``multiprocessing`` would import the
program's main module into each child: vLLM and torch with it, and without a main guard the whole program again.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable

from stream2llm_rag.retrievers.crawler.pages import NO_FOCUS, Extracted, Focus, Outline, Page, PageSkippedError, Skip
from stream2llm_rag.retrievers.crawler.wire import (
    LENGTH,
    MAX_FRAME_BYTES,
    Failure,
    Reply,
    Text,
    decode_reply,
    encode_page,
)

DEFAULT_EXTRACTOR = "stream2llm_rag.retrievers.crawler.extract:trafilatura_text"
_START_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 5.0
_MAX_PAGES_PER_WORKER = 500  # lxml and trafilatura keep some memory of every page


class ExtractionPool:
    """Turns pages into text in ``num_workers`` processes; further pages wait in order of arrival."""

    def __init__(self, *, num_workers: int, timeout_s: float, extractor: str = DEFAULT_EXTRACTOR) -> None:
        self._workers = [_Worker(extractor, timeout_s) for _ in range(num_workers)]
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()  # holds each worker at most once

    def open(self) -> None:
        """Start the processes in the background."""
        for worker in self._workers:
            worker.restart()
            self._idle.put_nowait(worker)

    async def extract(self, page: Page, on_outline: Callable[[Outline], None], focus: Focus = NO_FOCUS) -> Extracted:
        """Outline and text of ``page``. ``on_outline`` gets the outline at once, while the text is still worked at.

        PageSkippedError where the page takes too long, breaks the process, or cannot be read. Cancelled, it ends the process,
        as nothing else stops lxml, and the next page gets a new one.
        """
        worker = await self._idle.get()
        try:
            return await worker.extract(page, on_outline, focus)
        finally:
            self._idle.put_nowait(worker)

    async def aclose(self) -> None:
        """End every process and wait until it has ended."""
        for worker in self._workers:
            worker.stop()
        await asyncio.gather(*(worker.wait_stopped() for worker in self._workers))


class _Worker:
    """One process after another."""

    def __init__(self, extractor: str, timeout_s: float) -> None:
        self._command = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from stream2llm_rag.retrievers.crawler.worker import main; main({extractor!r}, {timeout_s!r})"
        )
        self._timeout_s = timeout_s
        self._process: Process | None = None
        self._num_pages = 0
        self._starting: asyncio.Task[Process] | None = None

    def restart(self) -> None:
        """End the process, if any, and start another in the background."""
        self._kill()  # at once: a page that hangs takes a whole core
        self._starting = asyncio.create_task(self._start())

    async def extract(self, page: Page, on_outline: Callable[[Outline], None], focus: Focus) -> Extracted:
        process = await self._ready_process()
        self._num_pages += 1
        reply: Extracted | Failure | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await _converse(process, page, on_outline, focus)
        except TimeoutError as error:
            raise PageSkippedError(Skip.EXTRACTION, f"its text was not extracted within {self._timeout_s:g} s") from error
        except _WorkerError as error:
            raise PageSkippedError(Skip.EXTRACTION, f"the process that extracted its text {await _ending(process)}") from error
        finally:
            if reply is None or self._num_pages >= _MAX_PAGES_PER_WORKER:
                self.restart()
        if isinstance(reply, Failure):
            raise PageSkippedError(Skip.EXTRACTION, reply.reason)
        return reply

    def stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        self._kill()

    async def wait_stopped(self) -> None:
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._reap()

    async def _ready_process(self) -> Process:
        assert self._starting is not None  # the pool is open
        try:
            return await asyncio.shield(self._starting)  # who waits may be cancelled; the start goes on for the next
        except (OSError, _WorkerError) as error:
            self.restart()
            raise PageSkippedError(Skip.EXTRACTION, f"no process could be started to extract its text: {error}") from error

    async def _start(self) -> Process:
        await self._reap()
        # A session of its own, so that Ctrl-C in a terminal reaches the program alone, which then ends its workers.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self._command, stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._num_pages = 0
        async with asyncio.timeout(_START_TIMEOUT_S):
            greeting = await _receive(self._process)
        if isinstance(greeting, Failure):
            raise _WorkerError(greeting.reason)
        return self._process

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _reap(self) -> None:
        """Wait until nothing is left of a killed process: neither its entry in the process table nor its pipes."""
        if self._process is not None:
            await self._process.communicate()
            self._process = None


class _WorkerError(Exception):
    """The process is gone or talks nonsense."""


async def _converse(process: Process, page: Page, on_outline: Callable[[Outline], None], focus: Focus) -> Extracted | Failure:
    await _send(process, page, focus)
    match await _receive(process):
        case Outline() as outline:
            on_outline(outline)
        case Failure() as failure:
            return failure
        case other:
            raise _WorkerError(f"it sent {type(other).__name__} before an outline")
    match await _receive(process):
        case Text(text, score, is_cut, signature):
            return Extracted(outline, text, score, is_cut, signature)
        case Failure() as failure:
            return failure
        case other:
            raise _WorkerError(f"it sent {type(other).__name__} for a text")


async def _send(process: Process, page: Page, focus: Focus) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(encode_page(page, focus))
        await process.stdin.drain()
    except OSError as error:
        raise _WorkerError(str(error)) from error


async def _receive(process: Process) -> Reply:
    assert process.stdout is not None
    try:
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a reply of {length} bytes")
        return decode_reply(await process.stdout.readexactly(length))
    except (EOFError, OSError, ValueError) as error:
        raise _WorkerError(str(error)) from error


async def _ending(process: Process) -> str:
    """How a process that closed its pipe came to its end."""
    try:
        async with asyncio.timeout(_EXIT_TIMEOUT_S):
            code = await process.wait()
    except TimeoutError:
        return "stopped answering"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
