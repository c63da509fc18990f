"""Items on their way from a task on one event loop to a reader on another loop, or on a thread.

The producer starts at once. It ends, and all that it holds is freed, when its reader closes the stream, is cancelled, or is
forgotten. Reading costs one wake-up for whatever came meanwhile, not one for each item.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any, Generic, Self, TypeAlias, TypeVar

import anyio

from stream2llm_rag.errors import LifecycleError

T = TypeVar("T")

_CAPACITY = 64  # items that wait for their reader before send() does


class Outlet(Generic[T]):
    """The producer's end, on its own loop."""

    def __init__(self, deliver: Callable[[T], None]) -> None:
        self._deliver = deliver
        self._num_waiting = 0
        self._room = asyncio.Event()

    def emit(self, item: T) -> None:
        """Hand an item over now. For producers that are bounded otherwise, as an answer is by its ``max_tokens``."""
        self._num_waiting += 1
        self._deliver(item)

    async def send(self, item: T) -> None:
        """Hand an item over once the reader has room for it: waits while 64 are unread."""
        while self._num_waiting >= _CAPACITY:
            self._room.clear()
            await self._room.wait()
        self.emit(item)

    def taken(self, count: int) -> None:
        """The reader has taken that many."""
        self._num_waiting -= count
        self._room.set()


Producer: TypeAlias = Callable[[Outlet[T]], Awaitable[None]]


def forward(make: Callable[[], AsyncIterator[T]]) -> Producer[T]:
    """A producer that passes on what the iterator yields, and closes it at the end."""

    async def produce(outlet: Outlet[T]) -> None:
        async with closing(make()) as items:
            async for item in items:
                await outlet.send(item)

    return produce


@asynccontextmanager
async def closing(iterator: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Close an iterator behind the block, where it can be closed, also when we are being cancelled."""
    try:
        yield iterator
    finally:
        if aclose := getattr(iterator, "aclose", None):
            with anyio.CancelScope(shield=True):
                await aclose()


def run_on_new_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, in this context but on a loop and thread of its own: this thread may have a loop that runs."""
    with ThreadPoolExecutor(1, thread_name_prefix="stream2llm-call") as thread:
        return thread.submit(copy_context().run, lambda: asyncio.run(make())).result()


class Transfer(Generic[T]):
    """What both ends share. ``loop`` runs ``produce`` in the context of whoever made this; ``wake`` tells the reader to look."""

    def __init__(self, loop: asyncio.AbstractEventLoop, produce: Producer[T], wake: Callable[[], None]) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self._loop = loop
        self._produce = produce
        self._wake = wake
        self._outlet = Outlet[T](self._deliver)
        self._items: deque[T] = deque()
        self.task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self.has_ended = False

    def start(self) -> None:
        """Let the producer run."""
        self._loop.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        """Let the producer end; on a loop that is closed it has."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            self.fail(_ended_early())

    def take(self) -> list[T]:
        """All items that came since the last call."""
        taken = []
        while self._items:
            taken.append(self._items.popleft())
        if taken:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._outlet.taken, len(taken))
        return taken

    def check(self) -> None:
        """Raise what the producer raised."""
        if self._error is not None:
            raise self._error

    def fail(self, error: BaseException) -> None:
        """End it from outside, where the loop no longer can."""
        if not self.has_ended:
            self._error = error
            self.has_ended = True
            self._wake()

    def _start(self) -> None:
        self.task = self._loop.create_task(self._run())
        self.task.add_done_callback(self._finished)  # not the task itself: one that is cancelled early never begins

    async def _run(self) -> None:
        await self._produce(self._outlet)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.on_end()
        if task.cancelled():
            self.fail(_ended_early())
        elif (error := task.exception()) is not None:
            self.fail(error)
        else:
            self.has_ended = True
            self._wake()

    def _deliver(self, item: T) -> None:
        self._items.append(item)
        self._wake()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _ended_early() -> LifecycleError:
    return LifecycleError("the stream was ended before its end: it was closed, or its engine was.")


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
        """End the producer, and wait until it has freed what it held, also when cancelled meanwhile."""
        self.transfer.cancel()
        with anyio.CancelScope(shield=True):
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
