"""Reads on one thread or event loop what a task on another loop produces.

The producer ends, and all that it holds is freed, when its reader closes the stream, is cancelled, or is forgotten. Reading
costs one wake-up for whatever came meanwhile, not one for each item.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Generic, Self, TypeVar

import anyio

from stream2llm_rag.errors import LifecycleError
from stream2llm_rag.integrations import crossing
from stream2llm_rag.integrations.crossing import Producer, Transfer
from stream2llm_rag.shielding import run_shielded

T = TypeVar("T")


class ThreadStream(Generic[T]):
    """The reader's end for a thread: a plain iterator. Close it, or read it to its end.

    Raises :class:`LifecycleError` on ``loop`` itself, which could not run while it waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, produce: Producer[T]) -> None:
        if _running_loop() is loop:
            raise LifecycleError(
                "this call blocks the event loop that has to answer it. Use the async call there (ainvoke, astream, achat, "
                "aquery ...), or call from a thread."
            )
        self._moved = threading.Event()
        self.transfer = Transfer(loop, produce, self._moved.set)
        self._unread: deque[T] = deque()
        weakref.finalize(self, self.transfer.cancel).atexit = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            while not self._unread:
                self._moved.clear()
                has_ended = self.transfer.has_ended  # before the look: what comes before the end is seen
                self._unread.extend(self.transfer.take())
                if self._unread:
                    break
                if has_ended:
                    self.transfer.check()
                    raise StopIteration
                self._moved.wait()
        except BaseException as error:
            if not isinstance(error, StopIteration):
                self.close()
            raise
        return self._unread.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the producer, and wait until it has freed what it held."""
        self.transfer.cancel()
        while not self.transfer.has_ended:
            self._moved.wait()
            self._moved.clear()


class LoopStream(Generic[T]):
    """The reader's end for an event loop, the one that runs now: an async iterator. Close it, or read it to its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, produce: Producer[T]) -> None:
        self._signal = _Signal(asyncio.get_running_loop())
        self.transfer = Transfer(loop, produce, self._signal.send)
        self._unread: deque[T] = deque()
        weakref.finalize(self, self.transfer.cancel).atexit = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            while not self._unread:
                self._signal.moved.clear()
                has_ended = self.transfer.has_ended
                self._unread.extend(self.transfer.take())
                if self._unread:
                    break
                if has_ended:
                    self.transfer.check()
                    raise StopAsyncIteration
                await self._signal.moved.wait()
        except BaseException as error:
            if not isinstance(error, StopAsyncIteration):
                await self.aclose()
            raise
        return self._unread.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the producer, and wait until it has freed what it held, also when cancelled meanwhile.

        Not longer than ten seconds: its loop may be blocked by somebody who waits for this.
        """
        self.transfer.cancel()
        await run_shielded(self._until_it_has_ended())

    async def _until_it_has_ended(self) -> None:
        with anyio.move_on_after(crossing.CLOSE_TIMEOUT_S):
            while not self.transfer.has_ended:
                await self._signal.moved.wait()
                self._signal.moved.clear()


class _Signal:
    """Wakes a task on ``loop`` from any thread; one wake-up is under way at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.moved = asyncio.Event()
        self._loop = loop
        self._is_under_way = False

    def send(self) -> None:
        if not self._is_under_way:
            self._is_under_way = True
            with suppress(RuntimeError):  # the reader's loop is closed: nobody reads
                self._loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        self._is_under_way = False
        self.moved.set()


def run_on_new_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, in this context but on a loop and thread of its own: a loop may run in this one.

    Ctrl-C in this thread cancels it, and is raised when it has freed what it held.
    """
    running: Future[asyncio.Task[Any]] = Future()

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.set_result(task)
        return await make()

    with ThreadPoolExecutor(1, thread_name_prefix="stream2llm-call") as thread:  # which waits for it
        try:
            return thread.submit(copy_context().run, lambda: asyncio.run(run())).result()
        except BaseException:
            running.add_done_callback(_cancel)  # now, or as soon as it runs
            raise


def _cancel(running: Future[asyncio.Task[Any]]) -> None:
    task = running.result()
    with suppress(RuntimeError):  # its loop has ended
        task.get_loop().call_soon_threadsafe(task.cancel)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
