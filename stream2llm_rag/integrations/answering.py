"""What the adapters ask of an engine in the background: an answer over a retriever, or one to a prompt that is complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio

from stream2llm_rag.documents import ContextDelta, Document
from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.errors import CapacityError
from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.crossing import Outlet, closing
from stream2llm_rag.integrations.hosting import at_home
from stream2llm_rag.integrations.streams import LoopStream
from stream2llm_rag.pipeline import StreamingRAG
from stream2llm_rag.pipeline.retrieval import checked_context
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Event

Update: TypeAlias = Event | str | RAGResult
"""What happened, a piece of the answer's text, or at last its result."""

_RETRY_AFTER_S = 0.1  # doubled each time


class Watched:
    """A retriever that tells of each delta what the context came to: ``on_context(documents)``, on the retriever's own loop."""

    def __init__(self, retriever: StreamingRetriever, on_context: Callable[[tuple[Document, ...]], None]) -> None:
        self._retriever = retriever
        self._on_context = on_context

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas of the retriever, unchanged."""
        documents: tuple[Document, ...] = ()
        async with closing(self._retriever.stream(query)) as deltas:
            async for delta in deltas:
                documents = checked_context(documents, delta)
                self._on_context(documents)
                yield delta


def start_answer(
    engine: BackgroundEngine, rag: StreamingRAG, question: str, retriever: StreamingRetriever, **options: Any
) -> LoopStream[Update]:
    """Start an answer; read the updates on the loop that runs now, which also runs the retriever.

    ``options`` are those of :meth:`StreamingRAG.stream`. Events that nobody reads yet are kept: as many as its request has
    deltas and steps. Text waits for its reader, where vLLM merges what comes meanwhile.
    """
    here = at_home(retriever)

    async def produce(outlet: Outlet[Update]) -> None:
        async with rag.stream(question, retriever=here, on_event=outlet.emit, **options) as answer:
            async for text in answer:
                await outlet.send(text)
            outlet.emit(answer.result)

    return engine.aiterate(produce)


def describe(result: RAGResult) -> dict[str, Any]:
    """What there is to know of an answer beside its text, in plain values."""
    return {
        "sources": list(result.sources),
        "measures": dict(result.timeline.measures),
        "left_out": [document.source for document in result.left_out],
        "skipped": [{"source": event.source, "reason": event.detail} for event in result.skipped],
        "crawl": None if result.crawl is None else result.crawl.to_dict(),
        "preemptions": dict(result.preemptions),
        "deadline_reached": result.deadline_reached,
        "retrieval_error": None if result.retrieval_error is None else str(result.retrieval_error),
        "received_tokens": result.received_tokens,
        "handover_error": result.handover_error,
    }


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that is complete. ``timeout_s`` bounds the whole answer, ``max_retries`` the attempts at a full engine."""

    token_ids: Sequence[int]
    sampling: Mapping[str, Any]
    timeout_s: float | None = None
    max_retries: int = 0


def start_generation(engine: BackgroundEngine, prompt: Prompt) -> LoopStream[OutputDelta]:
    """Start the answer to a prompt; read it on the loop that runs now. TimeoutError after ``timeout_s`` seconds."""

    async def produce(outlet: Outlet[OutputDelta]) -> None:
        with anyio.fail_after(prompt.timeout_s):
            async with await _open(engine, prompt.max_retries) as session:
                async for delta in await session.finish(prompt.token_ids, prompt.sampling):
                    await outlet.send(delta)

    return engine.aiterate(produce)


async def _open(engine: BackgroundEngine, max_retries: int) -> Any:
    for attempt in range(max_retries):
        try:
            return await engine.engine.open()
        except CapacityError:
            await asyncio.sleep(_RETRY_AFTER_S * 2**attempt)
    return await engine.engine.open()
