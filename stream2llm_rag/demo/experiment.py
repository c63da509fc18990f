"""Answer questions over live crawls, then over what these brought, the usual way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import anyio

from stream2llm_rag.demo.documentation import DocumentationServer
from stream2llm_rag.demo.topics import DENIED, Topic
from stream2llm_rag.documents import Document
from stream2llm_rag.errors import EngineError
from stream2llm_rag.pipeline import Engine, StreamingRAG
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


@dataclass(frozen=True, slots=True)
class Settings:
    """How each question is answered.

    The crawl has the manners that a site on the web expects: one request at a time, ``delay_s`` seconds apart (0.7 is the
    median gap between pages in the crawls of the paper on Stream2LLM, arXiv 2604.16395). Each page goes in with at most
    ``max_document_tokens`` tokens, so that no single one makes up the prompt. ``sampling`` should be greedy, or answers differ
    by chance.
    """

    max_pages: int = 12
    delay_s: float = 0.7
    max_document_tokens: int = 1000
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 64})


class Experiment:
    """Answers every topic's question at once, live and streamed first, then from the recording; an async context manager.

    The steps are called in this order: :meth:`warm_up`, :meth:`stream`, :meth:`replay`, :meth:`control`. Each starts with an
    empty prefix cache. The crawlers live as long as the block.
    """

    def __init__(
        self, engine: DemoEngine, server: DocumentationServer, topics: Sequence[Topic], settings: Settings | None = None
    ) -> None:
        self._engine = engine
        self._server = server
        self._topics = topics
        self._settings = settings or Settings()
        self._stack = AsyncExitStack()
        self._recorders: list[RecordingRetriever] = []

    @property
    def recordings(self) -> list[Recording]:
        """What the live crawls brought, one for each topic, once :meth:`stream` has returned."""
        return [recorder.recordings[0] for recorder in self._recorders]

    async def __aenter__(self) -> Self:
        from stream2llm_rag.retrievers.crawler import WebCrawler

        async with AsyncExitStack() as opened:
            for topic in self._topics:
                crawler = WebCrawler(
                    [self._server.page(topic.module)],
                    deny=DENIED,
                    max_pages=self._settings.max_pages,
                    per_host_concurrency=1,
                    delay_s=self._settings.delay_s,
                    num_extractors=1,
                    timeout_s=600.0,
                    allow_private_hosts=[self._server.host],
                )
                self._recorders.append(RecordingRetriever(await opened.enter_async_context(crawler)))
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
        """Crawl live, stream what comes into the engine, and record it."""
        return await self._answer_all(self._recorders, True, on_event)

    async def replay(self, on_event: OnEvent | None = None) -> list[RAGResult]:
        """Bring the same pages at the same moments, and submit each prompt when its last page is there."""
        return await self._answer_all([ReplayRetriever(recording) for recording in self.recordings], False, on_event)

    async def control(self, answered: Sequence[RAGResult]) -> list[RAGResult]:
        """Answer again, the usual way and without waiting, from all pages of ``answered`` but the last."""
        kept = [[placed.document for placed in result.documents[:-1]] for result in answered]
        return await self._answer_all([InMemoryRetriever.from_documents(documents) for documents in kept], False)

    async def _answer_all(
        self, retrievers: Sequence[StreamingRetriever], streaming: bool, on_event: OnEvent | None = None
    ) -> list[RAGResult]:
        await forget_prefixes(self._engine)
        return await _at_once(
            self._answer(topic.question, retriever, streaming, partial(on_event, index) if on_event else None)
            for index, (topic, retriever) in enumerate(zip(self._topics, retrievers, strict=True))
        )

    async def _answer(
        self, question: str, retriever: StreamingRetriever, streaming: bool, on_event: Callable[[Event], None] | None = None
    ) -> RAGResult:
        rag = StreamingRAG(
            self._engine,
            retriever,
            sampling=self._settings.sampling,
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
