"""Items cross from one event loop to a thread or another loop: whole, in order, bounded, and never left running."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import anyio
import pytest

from stream2llm_rag.errors import LifecycleError
from stream2llm_rag.integrations.crossing import Outlet, forward
from stream2llm_rag.integrations.streams import LoopStream, ThreadStream, run_on_new_loop

WORD: ContextVar[str] = ContextVar("WORD", default="unset")


class Producer:
    """Counts up to ``limit``; notes how far it got, and that it was freed."""

    def __init__(self, limit: int, error: Exception | None = None) -> None:
        self._limit = limit
        self._error = error
        self.made = 0
        self.freed = threading.Event()

    async def __call__(self) -> AsyncIterator[int]:
        try:
            for number in range(self._limit):
                self.made = number + 1
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.freed.set()


@pytest.fixture
def elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert not asyncio.all_tasks(loop)
    loop.close()


def thread_stream(loop: asyncio.AbstractEventLoop, make: Producer) -> ThreadStream[int]:
    stream = ThreadStream(loop, forward(make))
    stream.transfer.start()
    return stream


def loop_stream(loop: asyncio.AbstractEventLoop, make: Producer) -> LoopStream[int]:
    stream = LoopStream(loop, forward(make))
    stream.transfer.start()
    return stream


def test_a_thread_reads_all_in_order(elsewhere: asyncio.AbstractEventLoop) -> None:
    assert list(thread_stream(elsewhere, Producer(1000))) == list(range(1000))


async def test_another_loop_reads_all_in_order(elsewhere: asyncio.AbstractEventLoop) -> None:
    assert [number async for number in loop_stream(elsewhere, Producer(1000))] == list(range(1000))


async def test_the_same_loop_reads_all_in_order() -> None:
    assert [number async for number in loop_stream(asyncio.get_running_loop(), Producer(1000))] == list(range(1000))


def test_an_error_comes_behind_the_items_before_it(elsewhere: asyncio.AbstractEventLoop) -> None:
    stream = thread_stream(elsewhere, Producer(2, error=KeyError("mine")))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(KeyError, match="mine"):
        next(stream)


async def test_a_producer_waits_for_a_slow_reader(elsewhere: asyncio.AbstractEventLoop) -> None:
    producer = Producer(10_000)
    async with loop_stream(elsewhere, producer) as stream:
        await anext(stream)
        rest = asyncio.run_coroutine_threadsafe(anyio.lowlevel.checkpoint(), elsewhere)
        await asyncio.wrap_future(rest)
        assert producer.made <= 64 * 2 + 1
    assert producer.freed.is_set()


def test_a_thread_that_closes_early_frees_the_producer(elsewhere: asyncio.AbstractEventLoop) -> None:
    producer = Producer(10_000)
    with thread_stream(elsewhere, producer) as stream:
        next(stream)
    assert producer.freed.is_set()


async def test_a_reader_that_is_cancelled_frees_the_producer(elsewhere: asyncio.AbstractEventLoop) -> None:
    freed = threading.Event()
    started = anyio.Event()

    async def never() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            freed.set()

    async def read() -> None:
        stream = LoopStream(elsewhere, forward(never))
        stream.transfer.start()
        async for _ in stream:
            started.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert freed.is_set()


async def test_a_close_whose_task_is_cancelled_waits_for_the_producer_all_the_same() -> None:
    may_go, freed = anyio.Event(), threading.Event()

    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await may_go.wait()
            freed.set()

    stream = LoopStream(asyncio.get_running_loop(), forward(slow))
    stream.transfer.start()
    assert await anext(stream) == 1
    closing = asyncio.create_task(stream.aclose())
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    await anyio.wait_all_tasks_blocked()
    may_go.set()
    await asyncio.wait([closing], timeout=30)
    assert closing.cancelled()
    assert freed.is_set()


def test_a_stream_that_is_forgotten_frees_the_producer(elsewhere: asyncio.AbstractEventLoop) -> None:
    producer = Producer(10_000)
    stream = thread_stream(elsewhere, producer)
    next(stream)
    del stream
    gc.collect()
    assert producer.freed.wait(30)


def test_a_stream_that_is_closed_before_its_producer_began_ends(elsewhere: asyncio.AbstractEventLoop) -> None:
    gate = threading.Event()
    elsewhere.call_soon_threadsafe(gate.wait)  # holds the loop until the stream is cancelled
    stream = thread_stream(elsewhere, Producer(3))
    stream.transfer.cancel()
    gate.set()
    stream.close()
    with pytest.raises(LifecycleError, match="before its end"):
        list(stream)


def test_a_stream_over_a_closed_loop_ends_when_closed() -> None:
    loop = asyncio.new_event_loop()
    stream: ThreadStream[int] = ThreadStream(loop, forward(Producer(3)))
    loop.close()
    stream.close()
    with pytest.raises(LifecycleError, match="before its end"):
        next(stream)


async def test_a_thread_read_on_the_producers_own_loop_is_refused() -> None:
    with pytest.raises(LifecycleError, match="blocks the event loop"):
        ThreadStream(asyncio.get_running_loop(), forward(Producer(3)))


def test_the_producer_runs_in_the_context_of_who_starts_it(elsewhere: asyncio.AbstractEventLoop) -> None:
    async def produce(outlet: Outlet[str]) -> None:
        outlet.emit(WORD.get())

    WORD.set("caller's")
    stream = ThreadStream(elsewhere, produce)
    stream.transfer.start()
    assert list(stream) == ["caller's"]


async def test_a_coroutine_on_a_new_loop_runs_beside_a_loop_that_blocks() -> None:
    async def add() -> int:
        await anyio.lowlevel.checkpoint()
        return 2 + 3

    assert run_on_new_loop(add) == 5


def test_a_coroutine_on_a_new_loop_is_cancelled_by_an_interrupt() -> None:
    is_freed = threading.Event()

    main_thread = threading.main_thread().ident or 0

    def names_in_main_thread() -> set[str]:
        return {frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main_thread])}

    async def work() -> None:
        try:
            while "result" not in names_in_main_thread():  # an interrupt while the pool starts its thread is another matter
                await anyio.lowlevel.checkpoint()
            signal.pthread_kill(main_thread, signal.SIGINT)
            await anyio.sleep_forever()
        finally:
            is_freed.set()

    with pytest.raises(KeyboardInterrupt):
        run_on_new_loop(work)
    assert is_freed.is_set()
