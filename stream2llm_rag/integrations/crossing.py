"""Items on their way from a task on one event loop to a reader elsewhere (see :mod:`streams`)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Generic, TypeAlias, TypeVar

import anyio

from stream2llm_rag.errors import LifecycleError

T = TypeVar("T")

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0  # a loop that is blocked by whoever waits for this would never get to free what it runs
_CAPACITY = 64  # items that wait for their reader before send() does


class Outlet(Generic[T]):
    """The producer's end, on its own loop."""

    def __init__(self, deliver: Callable[[T], None]) -> None:
        self._deliver = deliver
        self._num_waiting = 0
        self._room = asyncio.Event()

    def emit(self, item: T) -> None:
        """Hand an item over now. For what is bounded otherwise, as the events of one answer are."""
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
    """Close an iterator behind the block, where it can be closed, also when we are being cancelled.

    One that takes more than ten seconds is left.
    """
    try:
        yield iterator
    finally:
        if aclose := getattr(iterator, "aclose", None):
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True) as scope:
                await aclose()
            if scope.cancelled_caught:
                logger.warning("%s took more than %.0f s to close, and was left", type(iterator).__name__, CLOSE_TIMEOUT_S)


class Transfer(Generic[T]):
    """What both ends share. ``loop`` runs ``produce`` in the context of who starts it; ``wake`` tells the reader to look."""

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


def _ended_early() -> LifecycleError:
    return LifecycleError("the stream was ended before its end: it was closed, or its engine was.")
