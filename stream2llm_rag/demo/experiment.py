"""Answer questions over live retrieval, then over what that brought, the usual way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import anyio

from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.demo.topics import Topic
from stream2llm_rag.documents import Document
from stream2llm_rag.errors import EngineError
from stream2llm_rag.pipeline import Engine, StreamingRAG
from stream2llm_rag.prompt import Order
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import InMemoryRetriever, StreamingRetriever
from stream2llm_rag.retrievers.recording import Recording, RecordingRetriever, ReplayRetriever
from stream2llm_rag.timeline import Event

_FORGET_TIMEOUT_S = 10.0
_T = TypeVar("_T")

OnEvent = Callable[[int, Event], None]
"""Called with the index of a topic and each event of its timeline, as it happens."""


class DemoEngine(Engine, Protocol):
    """What the experiment needs of an engine beyond what the pipeline needs."""

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False where requests still hold KV."""
        ...


class Source(Protocol):
    """Where the context comes from."""

    def retrievers(
        self, topics: Sequence[Topic], settings: Settings
    ) -> AbstractAsyncContextManager[Sequence[StreamingRetriever]]:
        """A retriever for each topic, for as long as the block lasts."""
        ...


class Experiment:
    """Answers every topic's question at once, live and streamed first, then from the recording; an async context manager.

    The steps are called in this order: :meth:`warm_up`, :meth:`stream`, :meth:`replay`, :meth:`control`. Each starts with an
    empty prefix cache. The retrievers of ``source`` live as long as the block.
    """

    def __init__(self, engine: DemoEngine, source: Source, topics: Sequence[Topic], settings: Settings | None = None) -> None:
        self._engine = engine
        self._source = source
        self._topics = topics
        self._settings = settings or Settings()
        self._stack = AsyncExitStack()
        self._recorders: list[RecordingRetriever] = []

    @property
    def recordings(self) -> list[Recording]:
        """What the live retrieval brought, one for each topic, once :meth:`stream` has returned."""
        return [recorder.recordings[0] for recorder in self._recorders]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            retrievers = await opened.enter_async_context(self._source.retrievers(self._topics, self._settings))
            self._recorders = [RecordingRetriever(retriever) for retriever in retrievers]
            self._stack = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def warm_up(self) -> None:
        """Answer once each way over filler of the same size, so that no measured run is the first to touch code or memory."""
        filler = [Document(f"Filler {index}. " * 1000, f"filler:{index}") for index in range(self._settings.max_pages)]
        for streaming in (True, False):
            await forget_prefixes(self._engine)
            await self._answer("What is this?", InMemoryRetriever.from_documents(filler), streaming)

    async def stream(self, on_event: OnEvent | None = None) -> list[RAGResult]:
        """Retrieve live, stream what comes into the engine, and record it."""
        return await self._answer_all(self._recorders, True, on_event)

    async def replay(self, on_event: OnEvent | None = None) -> list[RAGResult]:
        """Bring the same documents at the same moments, and submit each prompt when the last one is there."""
        return await self._answer_all(self._replays(), False, on_event)

    async def stream_by_rank(self) -> list[RAGResult]:
        """Bring and stream the same documents at the same moments, but in the retriever's order, whatever that moves."""
        return await self._answer_all(self._replays(), True, order="rank")

    async def control(self, answered: Sequence[RAGResult]) -> list[RAGResult]:
        """Answer again, the usual way and without waiting, from all pages of ``answered`` but the last."""
        kept = [[placed.document for placed in result.documents[:-1]] for result in answered]
        return await self._answer_all([InMemoryRetriever.from_documents(documents) for documents in kept], False)

    def _replays(self) -> list[StreamingRetriever]:
        return [ReplayRetriever(recording) for recording in self.recordings]

    async def _answer_all(
        self,
        retrievers: Sequence[StreamingRetriever],
        streaming: bool,
        on_event: OnEvent | None = None,
        order: Order = "stable",
    ) -> list[RAGResult]:
        await forget_prefixes(self._engine)
        return await _at_once(
            self._answer(topic.question, retriever, streaming, partial(on_event, index) if on_event else None, order)
            for index, (topic, retriever) in enumerate(zip(self._topics, retrievers, strict=True))
        )

    async def _answer(
        self,
        question: str,
        retriever: StreamingRetriever,
        streaming: bool,
        on_event: Callable[[Event], None] | None = None,
        order: Order = "stable",
    ) -> RAGResult:
        rag = StreamingRAG(
            self._engine,
            retriever,
            sampling=self._settings.sampling,
            order=order,
            max_document_tokens=self._settings.max_document_tokens,
            on_retrieval_error="raise",
        )
        return await rag.answer(question, streaming=streaming, on_event=on_event)


async def forget_prefixes(engine: DemoEngine) -> None:
    """Empty the prefix cache. The KV of a request that has just ended may be held for a moment: waits up to 10 seconds for it.

    Raises :class:`EngineError` where requests still hold KV after that.
    """
    with anyio.move_on_after(_FORGET_TIMEOUT_S):
        while not await engine.reset_prefix_cache():  # noqa: ASYNC110 - nobody is told when the core lets go
            await anyio.sleep(0.02)
        return
    raise EngineError(
        f"The prefix cache could not be reset within {_FORGET_TIMEOUT_S:g} s: requests hold KV. End those that are not ours."
    )


async def _at_once(jobs: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run ``jobs`` together. The first that fails ends the others, and its error is raised as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(job) for job in jobs]
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
    else:
        return [task.result() for task in running]
    raise failure
