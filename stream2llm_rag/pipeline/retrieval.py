"""Read a retriever to its end, or to where it is cut short."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from stream2llm_rag.documents import ContextDelta, Document, RetrievalEvent, context_after
from stream2llm_rag.engine.inputs import checked_hint
from stream2llm_rag.errors import RetrievalError
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.retrievers.report import CrawlTally
from stream2llm_rag.timeline import EventKind, Recorder

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

logger = logging.getLogger(__name__)

_MAX_WAITING_DELTAS = 64
_CLOSE_TIMEOUT_S = 10.0


class Retrieval:
    """Reads a retriever to its end, or to where it is cut short, ahead of whoever takes what it brings."""

    def __init__(self) -> None:
        self.skipped: list[RetrievalEvent] = []
        self.crawl = CrawlTally()
        self.error: RetrievalError | None = None
        self.ended_at = 0.0
        self.was_cut_short = False
        self._is_cut = anyio.Event()

    def cut_short(self) -> None:
        """End it now; before it began, as soon as it begins."""
        self._is_cut.set()

    async def run(
        self,
        retriever: StreamingRetriever,
        question: str,
        deadline: float | None,
        take: Callable[[Sequence[ContextDelta]], Any],
        recorder: Recorder,
        closing: TaskGroup,
    ) -> None:
        """Hand deltas to ``take``, all that came meanwhile at a time, until retrieval has ended and all are taken.

        The retriever's iterator is closed in ``closing``: the answer need not wait for that.
        """
        sender, receiver = anyio.create_memory_object_stream[ContextDelta](_MAX_WAITING_DELTAS)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks, receiver:
            tasks.start_soon(self._read, retriever, question, deadline, sender, recorder, closing)
            try:
                async for delta in receiver:
                    await take([delta, *_drain(receiver)])
            except Exception as error:  # raised inside the group it would come out wrapped
                failure = error
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _read(
        self,
        retriever: StreamingRetriever,
        question: str,
        deadline: float | None,
        sender: MemoryObjectSendStream[ContextDelta],
        recorder: Recorder,
        closing: TaskGroup,
    ) -> None:
        wait_s = math.inf if deadline is None else deadline - time.monotonic()
        async with sender, anyio.create_task_group() as tasks:
            with anyio.move_on_after(wait_s) as scope:
                tasks.start_soon(self._cancel_when_cut, scope)
                await self._read_all(retriever, question, sender, recorder, closing)
            self.was_cut_short = scope.cancelled_caught
            self._end(recorder)
            tasks.cancel_scope.cancel()

    async def _cancel_when_cut(self, scope: anyio.CancelScope) -> None:
        await self._is_cut.wait()
        scope.cancel()

    async def _read_all(
        self,
        retriever: StreamingRetriever,
        question: str,
        sender: MemoryObjectSendStream[ContextDelta],
        recorder: Recorder,
        closing: TaskGroup,
    ) -> None:
        documents: tuple[Document, ...] = ()
        iterator: AsyncIterator[ContextDelta] | None = None
        try:
            iterator = retriever.stream(question)
            async for delta in iterator:
                documents = checked_context(documents, delta)
                self._report(delta, recorder)
                await sender.send(delta)
        except Exception as error:
            self._fail(error, documents)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fail(error, documents)  # nobody cancels us: it comes out of the retriever
        finally:
            if iterator is not None:
                closing.start_soon(_close, iterator)

    def _fail(self, error: BaseException, documents: tuple[Document, ...]) -> None:
        if isinstance(error, RetrievalError):
            self.error = error
        else:
            self.error = RetrievalError(f"the retriever failed: {error!r}")
            self.error.__cause__ = error
        self.error.documents = documents

    def _end(self, recorder: Recorder) -> None:
        self.ended_at = time.monotonic()
        if self.error is not None:
            recorder.record(EventKind.RETRIEVAL_FAILED, at=self.ended_at, detail=str(self.error))
        elif self.was_cut_short:
            recorder.record(EventKind.DEADLINE, at=self.ended_at)
        else:
            recorder.record(EventKind.RETRIEVAL_END, at=self.ended_at)

    def _report(self, delta: ContextDelta, recorder: Recorder) -> None:
        for event in delta.events:
            recorder.record_retrieval(event)
            self.crawl.note(event)
            if event.kind == "skip":
                self.skipped.append(event)


def checked_context(documents: tuple[Document, ...], delta: ContextDelta) -> tuple[Document, ...]:
    """The context that ``delta`` makes of ``documents``.

    TypeError or InvalidInputError, which say what to write, where it is no delta or its hint no count: the retriever's failure
    here, where what came before counts.
    """
    context = context_after(documents, delta)
    checked_hint(delta.num_remaining)
    return context


def _drain(receiver: MemoryObjectReceiveStream[ContextDelta]) -> list[ContextDelta]:
    waiting = []
    while True:
        try:
            waiting.append(receiver.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return waiting


async def _close(iterator: AsyncIterator[ContextDelta]) -> None:
    """Let the retriever free what it holds, also when we are being cancelled; not longer than it may take."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is None:
        return
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_TIMEOUT_S) as scope:
        try:
            await aclose()
        except Exception:
            logger.exception("a retriever failed to close")
    if scope.cancelled_caught:
        logger.warning("a retriever took more than %.0f s to close, and was left", _CLOSE_TIMEOUT_S)
