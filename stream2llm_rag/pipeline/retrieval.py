"""Read a retriever to its end, or to where it is cut short."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from stream2llm_rag.documents import Append, ContextDelta, Document, RetrievalEvent
from stream2llm_rag.errors import RetrievalError
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import EventKind, Recorder

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

_MAX_WAITING_DELTAS = 64
_CLOSE_TIMEOUT_S = 10.0


class Retrieval:
    """Reads a retriever to its end, or to where it is cut short, ahead of whoever takes what it brings."""

    def __init__(self) -> None:
        self.skipped: list[RetrievalEvent] = []
        self.error: RetrievalError | None = None
        self.ended_at = 0.0
        self.was_cut_short = False
        self._scope = anyio.CancelScope()

    def cut_short(self) -> None:
        """End it now; before it began, as soon as it begins."""
        self._scope.cancel()

    async def run(
        self,
        retriever: StreamingRetriever,
        question: str,
        deadline: float | None,
        take: Callable[[Sequence[ContextDelta]], Any],
        recorder: Recorder,
    ) -> None:
        """Hand deltas to ``take``, all that came meanwhile at a time, until retrieval has ended and all are taken."""
        sender, receiver = anyio.create_memory_object_stream[ContextDelta](_MAX_WAITING_DELTAS)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks, receiver:
            tasks.start_soon(self._read, retriever, question, deadline, sender, recorder)
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
    ) -> None:
        if deadline is not None:
            self._scope.deadline = anyio.current_time() + deadline - time.monotonic()
        documents: list[Document] = []
        async with sender:
            iterator: AsyncIterator[ContextDelta] | None = None
            try:
                with self._scope:
                    iterator = retriever.stream(question)
                    async for delta in iterator:
                        documents = [*documents, *delta.documents] if isinstance(delta, Append) else list(delta.documents)
                        self._report(delta, recorder)
                        await sender.send(delta)
            except Exception as error:
                self.error = error if isinstance(error, RetrievalError) else RetrievalError(f"the retriever failed: {error!r}")
                self.error.__cause__ = self.error.__cause__ or (None if error is self.error else error)
                self.error.documents = tuple(documents)
            self._end(recorder)
            if iterator is not None:
                await _close(iterator)

    def _end(self, recorder: Recorder) -> None:
        self.ended_at = time.monotonic()
        self.was_cut_short = self._scope.cancelled_caught
        if self.error is not None:
            recorder.record(EventKind.RETRIEVAL_FAILED, at=self.ended_at, detail=str(self.error))
        elif self.was_cut_short:
            recorder.record(EventKind.DEADLINE, at=self.ended_at)
        else:
            recorder.record(EventKind.RETRIEVAL_END, at=self.ended_at)

    def _report(self, delta: ContextDelta, recorder: Recorder) -> None:
        for event in delta.events:
            recorder.record_retrieval(event)
            if event.kind == "skip":
                self.skipped.append(event)


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
    if aclose is not None:
        with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
            await aclose()
