"""LangChain's retrievers as a source that streams."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import ensure_config, get_async_callback_manager_for_config

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.integrations.langchain.messages import from_langchain, to_langchain
from stream2llm_rag.integrations.sources import Documents, Rerank, Search, StreamingSource


def make_source(
    retrievers: BaseRetriever | Sequence[BaseRetriever],
    rerank: BaseDocumentCompressor | Callable[[str, list[Any]], Any] | None,
) -> StreamingSource:
    """See :meth:`StreamingSource.from_langchain`."""
    members = _members(retrievers)
    for member in members:
        if not isinstance(member, BaseRetriever):
            raise InvalidInputError(f"LangChain retrievers are needed, but {type(member).__name__} came.")
    searches = [Search(member.get_name(), partial(_find, member)) for member in members]
    fuse = _fusion(retrievers)
    chosen = _reranker(rerank) if rerank is not None else fuse
    return StreamingSource(searches, rerank=chosen)


def _members(retrievers: Any) -> list[Any]:
    if _is_ensemble(retrievers):
        return list(retrievers.retrievers)
    return [retrievers] if isinstance(retrievers, BaseRetriever) else list(retrievers)


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


async def _find(retriever: BaseRetriever, query: str) -> Documents:
    """Run one retriever as a child of the run that is under way, and close its run when it is cancelled.

    ``BaseRetriever.ainvoke`` tells of errors, but not of a cancellation, and its run would stay open for ever.
    """
    run_id = uuid4()
    try:
        return _ours(await retriever.ainvoke(query, run_id=run_id))
    except asyncio.CancelledError as error:
        manager = get_async_callback_manager_for_config(ensure_config())
        run = AsyncCallbackManagerForRetrieverRun(
            run_id=run_id,
            handlers=manager.handlers,
            inheritable_handlers=manager.inheritable_handlers,
            parent_run_id=manager.parent_run_id,
        )
        with anyio.CancelScope(shield=True):
            await run.on_retriever_error(error)
        raise


def _ours(documents: Sequence[Any]) -> tuple[Document, ...]:
    return tuple(from_langchain(document) for document in documents)


def _theirs(documents: Documents) -> list[Any]:
    return [to_langchain(document) for document in documents]
