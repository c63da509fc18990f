"""An engine on an event loop of its own, in a thread of its own: for callers without a loop, and for all of them at once."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import anyio.to_thread

from stream2llm_rag.engine.disaggregated import DisaggregatedEngine
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.errors import InvalidInputError, LifecycleError, UnsupportedError
from stream2llm_rag.integrations.crossing import Producer, Transfer
from stream2llm_rag.integrations.guests import Guest
from stream2llm_rag.integrations.hosting import HostedRetriever
from stream2llm_rag.integrations.streams import LoopStream, ThreadStream
from stream2llm_rag.main_guard import refuse_unguarded_start
from stream2llm_rag.pipeline import Engine
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.shielding import run_shielded

T = TypeVar("T")

logger = logging.getLogger(__name__)

# For retrievers that block: one that waits for a thread while it holds one must never wait for ever. Threads start on demand.
_MAX_BLOCKING_CALLS = 1024


class BackgroundEngine:
    """Runs ``engine`` on a loop of its own, and serves plain scripts, threads and running loops (Jupyter, servers) alike.

    ::

        with BackgroundEngine(Stream2LLMEngine("Qwen/Qwen3-0.6B")) as engine:
            chat = ChatStream2LLM(engine=engine)

    ``engine`` is a :class:`Stream2LLMEngine`, or anything with the same ``open()``, ``tokenizer`` and ``max_model_len``; one
    that has to be opened is not open yet. Entering blocks until it is, under ``async with`` without blocking the loop; in a
    notebook write ``engine = BackgroundEngine(...).open()``. Closing ends what is under way, for which its readers get
    :class:`LifecycleError`. One that nobody closed is closed when the interpreter exits.

    Everything may be called from any thread. It cannot be pickled or copied to another process; in one that was forked it
    raises :class:`LifecycleError`.
    """

    def __init__(self, engine: Engine) -> None:
        if not hasattr(engine, "open"):
            raise InvalidInputError(f"an engine is needed, such as Stream2LLMEngine('model'), but {engine!r} came.")
        self._engine = engine
        self._lock = threading.Lock()
        self._process_id: int | None = None
        self._state = "not opened yet"
        self._transfers: set[Transfer[Any]] = set()
        self._guests: list[Guest] = []
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop  # made with the thread, for both have to be ended
        self._thread = threading.Thread(target=self._serve, name="stream2llm-loop", daemon=True)

    @property
    def engine(self) -> Engine:
        """The engine, open."""
        self._check()
        return self._engine

    def open(self) -> Self:
        """Start the loop and open the engine on it; returns this. Raises what opening the engine raises."""
        self._begin()
        return self._wait_until_open()

    def close(self) -> None:
        """End everything: what is under way, what was hosted, the engine, the loop. Calling it again does nothing."""
        if self._is_forked:
            return  # a fork has no thread that could close anything, and nothing of its own to close
        if threading.current_thread() is self._thread:
            raise LifecycleError("an engine cannot be closed from its own loop, which the close would wait for.")
        with self._lock:
            was_open, self._state = self._state == "open", "closed" if self._state == "open" else self._state
        if was_open:
            atexit.unregister(self.close)
            self._stop()

    def enter(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Open what needs ``async with`` on the engine's loop, for scripts without one; it is closed with the engine."""
        if self.is_current:
            raise LifecycleError("a resource cannot be opened so from the engine's own loop, which has to open it.")
        with self._lock:  # no guest comes once the others are sent home
            self._check()
            opened = self._enter(resource)
        return opened.result()

    def host(self, resource: AbstractAsyncContextManager[T]) -> HostedRetriever:
        """Open a retriever on the engine's loop, such as a ``WebCrawler``; it is closed with the engine.

        What comes back can be used from everywhere, whichever loop or thread asks.
        """
        if not isinstance(resource, AbstractAsyncContextManager):
            raise InvalidInputError(
                f"only what needs `async with` is hosted, which {type(resource).__name__} does not. Pass it on as it is."
            )
        retriever = self.enter(resource)
        if not isinstance(retriever, StreamingRetriever):
            raise InvalidInputError(f"a retriever has a method stream(query), {type(retriever).__name__} has none.")
        return HostedRetriever(retriever, self._loop, self._start)

    def iterate(self, produce: Producer[T]) -> ThreadStream[T]:
        """Start ``produce`` on the engine's loop; its items, for a thread. LifecycleError on the engine's own loop."""
        self._check()
        stream = ThreadStream(self._loop, produce)
        self._start(stream.transfer)
        return stream

    def aiterate(self, produce: Producer[T]) -> LoopStream[T]:
        """Start ``produce`` on the engine's loop; its items, for the loop that runs now."""
        self._check()
        stream = LoopStream(self._loop, produce)
        self._start(stream.transfer)
        return stream

    @property
    def is_current(self) -> bool:
        """Whether this is the engine's own loop."""
        return threading.current_thread() is self._thread

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._begin()
        try:
            return await run_shielded(anyio.to_thread.run_sync(self._wait_until_open))
        except asyncio.CancelledError:
            await run_shielded(anyio.to_thread.run_sync(self.close))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_shielded(anyio.to_thread.run_sync(self.close))

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            "a running engine cannot be pickled or copied. Pass the model's name on, and open an engine where it is needed."
        )

    def _begin(self) -> None:
        """Start the loop. Here, in the caller's thread, it shows whether the main script is guarded."""
        if isinstance(self._engine, Stream2LLMEngine | DisaggregatedEngine):
            refuse_unguarded_start()
        with self._lock:
            if self._state != "not opened yet":
                raise LifecycleError(f"this engine is {self._state}. Make a new one: an engine is opened once.")
            self._state = "starting"
            self._process_id = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def _wait_until_open(self) -> Self:
        try:
            if isinstance(self._engine, AbstractAsyncContextManager):
                self._enter(self._engine).result()
        except BaseException:
            self._state = "closed"
            self._stop()
            raise
        self._state = "open"
        atexit.register(self.close)
        return self

    def _stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._is_over = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_default_executor(ThreadPoolExecutor(_MAX_BLOCKING_CALLS, thread_name_prefix="stream2llm-call"))
        try:
            while not self._is_over:
                self._run()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _run(self) -> None:
        """Run the loop until it is stopped, or ended by a task: asyncio lets SystemExit of any task out."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:  # which who waits for that task gets, too
            logger.warning("%r in a task on the engine's loop ended that task alone; the engine goes on", error)

    def _start(self, transfer: Transfer[Any]) -> None:
        with self._lock:
            self._check()
            self._transfers.add(transfer)
            transfer.on_end = lambda: self._transfers.discard(transfer)
            transfer.start()

    def _enter(self, resource: AbstractAsyncContextManager[T]) -> Future[T]:
        """Have a task of its own keep ``resource`` open: what it enters it has to leave in the same task."""
        guest = Guest()
        self._guests.append(guest)
        opened: Future[T] = Future()
        self._loop.call_soon_threadsafe(guest.start, resource, opened)
        return opened

    async def _end(self) -> None:
        tasks = [transfer.task for transfer in self._transfers if transfer.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._guests:
            await self._guests.pop().end()  # last come, first gone: the engine goes last

    @property
    def _is_forked(self) -> bool:
        return self._process_id not in (None, os.getpid())

    def _check(self) -> None:
        if self._is_forked:
            raise LifecycleError("this engine belongs to the process that this one was forked from. Open one in this process.")
        if self._state != "open":
            raise LifecycleError(f"this engine is {self._state}. Use it inside: with BackgroundEngine(...) as engine.")
