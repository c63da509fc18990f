"""Make a streaming retriever of ordinary ones, which answer all at once: several at a time, each one's documents as it ends."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from stream2llm_rag.documents import Append, ContextDelta, Document, Replace, RetrievalEvent
from stream2llm_rag.errors import InvalidInputError, RetrievalError
from stream2llm_rag.retrievers.base import require_question
from stream2llm_rag.shielding import run_shielded

if TYPE_CHECKING:
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.retrievers import RetrieverLike
    from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever
    from llama_index.core.postprocessor.types import BaseNodePostprocessor

Documents: TypeAlias = Sequence[Document]
Rerank: TypeAlias = Callable[[str, Sequence[Documents]], Documents | Awaitable[Documents]]
"""Takes the question and what each search found (empty for one that failed), in the order of the searches; returns the context,
best first."""


@dataclass(frozen=True, slots=True)
class Search:
    """``find(question)`` returns documents, all at once; ``name`` is what the timeline shows."""

    name: str
    find: Callable[[str], Awaitable[Documents]]


class StreamingSource:
    """A StreamingRetriever that runs ``searches`` at once and appends each one's documents as soon as it ends.

    With ``rerank`` the context is replaced by what that makes of them all when the last has ended. A search that fails does not
    end the others: their documents come, and then :class:`RetrievalError` is raised.
    """

    def __init__(self, searches: Sequence[Search], *, rerank: Rerank | None = None) -> None:
        if not searches:
            raise InvalidInputError("a source needs at least one retriever, but none came.")
        self._searches = tuple(searches)
        self._rerank = rerank

    @classmethod
    def from_langchain(
        cls,
        retrievers: RetrieverLike | Sequence[RetrieverLike],
        *,
        rerank: BaseDocumentCompressor | Callable[[str, list[Any]], Any] | None = None,
    ) -> StreamingSource:
        """LangChain retrievers: one, several, or an ``EnsembleRetriever``, whose members run at once and are fused at the end.

        Any Runnable from a question to documents is one, so a retriever ``.with_config(...)`` or a chain that ends in one.

        ``rerank`` is a document compressor, or a function (async or not) of the question and the list of LangChain documents.
        Needs the extra ``langchain``.
        """
        from stream2llm_rag.integrations.langchain.source import make_source

        return make_source(retrievers, rerank)

    @classmethod
    def from_llama_index(
        cls,
        retrievers: LlamaIndexRetriever | Sequence[LlamaIndexRetriever],
        *,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
    ) -> StreamingSource:
        """LlamaIndex retrievers: one, several, or a ``QueryFusionRetriever``.

        The members of one that generates no queries (``num_queries=1``) run at once and are fused at the end.
        ``node_postprocessors``, rerankers among them, see all nodes when the last retriever has ended. Needs the extra
        ``llama-index``.
        """
        from stream2llm_rag.integrations.llama_index.source import make_source

        return make_source(retrievers, node_postprocessors)

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """One Append for each search, and a Replace at the end where there is ``rerank``."""
        require_question(query)
        found: list[Documents] = [()] * len(self._searches)
        failures: list[tuple[str, BaseException]] = []
        started_s = time.monotonic()
        tasks = {asyncio.ensure_future(search.find(query)): index for index, search in enumerate(self._searches)}
        try:
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                num_remaining = len(pending) + (self._rerank is not None)
                for task in sorted(done, key=tasks.__getitem__):
                    index = tasks[task]
                    name = self._searches[index].name
                    try:
                        found[index] = tuple(task.result())
                    except (Exception, asyncio.CancelledError) as error:  # its own: nobody cancels us here
                        failures.append((name, error))
                        continue
                    event = RetrievalEvent("fetch", name, started_s, time.monotonic())
                    yield Append(tuple(found[index]), num_remaining=num_remaining, events=(event,))
        finally:
            await _end(tasks)
        if self._rerank is not None and any(found):
            yield Replace(await _reranked(self._rerank, query, found), num_remaining=0)
        if failures:
            raise RetrievalError("; ".join(f"{name} failed: {error!r}" for name, error in failures)) from failures[0][1]


async def _reranked(rerank: Rerank, query: str, found: Sequence[Documents]) -> tuple[Document, ...]:
    try:
        reranked = rerank(query, found)
        if inspect.isawaitable(reranked):
            reranked = await reranked
        return tuple(reranked)
    except Exception as error:
        raise RetrievalError(f"reranking failed: {error!r}") from error


async def _end(tasks: Iterable[asyncio.Future[Documents]]) -> None:
    """Let no search outlive its stream, also when we are being cancelled."""
    for task in tasks:
        task.cancel()
    await run_shielded(asyncio.gather(*tasks, return_exceptions=True))
