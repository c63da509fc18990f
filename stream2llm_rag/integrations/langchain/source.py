"""LangChain's retrievers as a source that streams."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManager, AsyncCallbackManagerForRetrieverRun, BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable
from langchain_core.runnables.config import ensure_config, get_async_callback_manager_for_config

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.integrations.langchain.handlers import told_of_the_end
from stream2llm_rag.integrations.langchain.messages import from_langchain, to_langchain
from stream2llm_rag.integrations.sources import Documents, Rerank, Search, StreamingSource


def make_source(
    retrievers: RetrieverLike | Sequence[RetrieverLike],
    rerank: BaseDocumentCompressor | Callable[[str, list[Any]], Any] | None,
) -> StreamingSource:
    """See :meth:`StreamingSource.from_langchain`."""
    members = _members(retrievers)
    for member in members:
        if not isinstance(member, Runnable):
            raise InvalidInputError(f"LangChain retrievers are needed, but {type(member).__name__} came.")
    searches = [Search(member.get_name(), partial(_find, member)) for member in members]
    fuse = _fusion(retrievers)
    chosen = _reranker(rerank) if rerank is not None else fuse
    return StreamingSource(searches, rerank=chosen)


def _members(retrievers: Any) -> list[Any]:
    if _is_ensemble(retrievers):
        return list(retrievers.retrievers)
    return [retrievers] if isinstance(retrievers, Runnable) else list(retrievers)


def _is_ensemble(retriever: Any) -> bool:
    """An EnsembleRetriever, which is not in langchain-core: it has members, and fuses what they find."""
    return (
        isinstance(retriever, BaseRetriever)
        and hasattr(retriever, "retrievers")
        and hasattr(retriever, "weighted_reciprocal_rank")
    )


def _fusion(retriever: Any) -> Rerank | None:
    if not _is_ensemble(retriever):
        return None
    return lambda query, found: _ours(retriever.weighted_reciprocal_rank([_theirs(documents) for documents in found]))


def _reranker(rerank: BaseDocumentCompressor | Callable[[str, list[Any]], Any]) -> Rerank:
    async def apply(query: str, found: Sequence[Documents]) -> Documents:
        every = [document for documents in found for document in _theirs(documents)]
        if isinstance(rerank, BaseDocumentCompressor):
            return _ours(await rerank.acompress_documents(every, query))
        result = rerank(query, every)
        return _ours(await result if inspect.isawaitable(result) else result)

    return apply


async def _find(retriever: RetrieverLike, query: str) -> Documents:
    """Run one retriever as a child of the run that is under way, and close what runs inside when it is cancelled.

    LangChain's retrievers tell of errors, but not of a cancellation, and their runs would stay open for ever.
    """
    manager = get_async_callback_manager_for_config(ensure_config())
    open_runs = _OpenRuns()
    manager.add_handler(open_runs)
    try:
        return _ours(await retriever.ainvoke(query, {"callbacks": manager}))
    except asyncio.CancelledError as error:
        await told_of_the_end(_close(open_runs, manager, error))
        raise


async def _close(open_runs: _OpenRuns, manager: AsyncCallbackManager, error: BaseException) -> None:
    for run_id, parent_run_id in reversed(open_runs.parents.copy().items()):
        run = AsyncCallbackManagerForRetrieverRun(
            run_id=run_id,
            handlers=manager.handlers,
            inheritable_handlers=manager.inheritable_handlers,
            parent_run_id=parent_run_id,
        )
        await run.on_retriever_error(error)


class _OpenRuns(BaseCallbackHandler):
    """The retriever runs that are under way, each with its parent."""

    run_inline = True  # in the task that runs the retriever: what it knows is true when that is cancelled

    def __init__(self) -> None:
        self.parents: dict[UUID, UUID | None] = {}

    def on_retriever_start(
        self, serialized: dict[str, Any], query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        self.parents[run_id] = parent_run_id

    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **_: Any) -> None:
        self.parents.pop(run_id, None)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self.parents.pop(run_id, None)


def _ours(documents: Sequence[Any]) -> tuple[Document, ...]:
    return tuple(from_langchain(document) for document in documents)


def _theirs(documents: Documents) -> list[Any]:
    return [to_langchain(document) for document in documents]
