"""LlamaIndex's retrievers as a source that streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import NodeWithScore, QueryBundle

from stream2llm_rag.documents import ContextDelta, Document, Replace, context_after
from stream2llm_rag.errors import InvalidInputError, RetrievalError
from stream2llm_rag.integrations.crossing import closing
from stream2llm_rag.integrations.llama_index.nodes import from_nodes, to_nodes
from stream2llm_rag.integrations.sources import Documents, Search, StreamingSource
from stream2llm_rag.retrievers.base import StreamingRetriever


def make_source(
    retrievers: BaseRetriever | Sequence[BaseRetriever], node_postprocessors: Sequence[BaseNodePostprocessor]
) -> StreamingSource:
    """See :meth:`StreamingSource.from_llama_index`."""
    if isinstance(retrievers, QueryFusionRetriever) and retrievers.num_queries == 1:
        fusion: QueryFusionRetriever | None = retrievers
        members = list(retrievers._retrievers)
    else:  # one that has a model write more queries first knows no member that could start at once
        fusion, members = None, [retrievers] if isinstance(retrievers, BaseRetriever) else list(retrievers)
    for member in members:
        if not isinstance(member, BaseRetriever):
            raise InvalidInputError(f"LlamaIndex retrievers are needed, but {type(member).__name__} came.")
    searches = [Search(type(member).__name__, partial(_find, member)) for member in members]
    rerank = _Rerank(fusion, node_postprocessors) if fusion is not None or node_postprocessors else None
    return StreamingSource(searches, rerank=rerank)


def postprocessed(retriever: StreamingRetriever, node_postprocessors: Sequence[BaseNodePostprocessor]) -> StreamingRetriever:
    """``retriever`` with postprocessors that see its whole context at its end."""
    return PostprocessedRetriever(retriever, node_postprocessors) if node_postprocessors else retriever


async def _find(retriever: BaseRetriever, query: str) -> Documents:
    return from_nodes(await retriever.aretrieve(query))


class _Rerank:
    """Fuses what the members of a fusion retriever found, as it would, and then applies the postprocessors."""

    def __init__(self, fusion: QueryFusionRetriever | None, node_postprocessors: Sequence[BaseNodePostprocessor]) -> None:
        self._fusion = fusion
        self._node_postprocessors = node_postprocessors

    async def __call__(self, query: str, found: Sequence[Documents]) -> Documents:
        results = [to_nodes(documents) for documents in found]
        nodes = [node for nodes in results for node in nodes] if self._fusion is None else _fused(self._fusion, query, results)
        return from_nodes(await apply(self._node_postprocessors, nodes, query))


def _fused(fusion: QueryFusionRetriever, query: str, results: list[list[NodeWithScore]]) -> list[NodeWithScore]:
    """As ``QueryFusionRetriever._aretrieve`` of llama-index-core 0.14, behind its searches."""
    by_member = {(query, index): nodes for index, nodes in enumerate(results)}
    match fusion.mode:
        case FUSION_MODES.RECIPROCAL_RANK:
            fused = fusion._reciprocal_rerank_fusion(by_member)
        case FUSION_MODES.RELATIVE_SCORE:
            fused = fusion._relative_score_fusion(by_member)
        case FUSION_MODES.DIST_BASED_SCORE:
            fused = fusion._relative_score_fusion(by_member, dist_based=True)
        case _:
            fused = fusion._simple_fusion(by_member)
    return fused[: fusion.similarity_top_k]


async def apply(
    node_postprocessors: Sequence[BaseNodePostprocessor], nodes: list[NodeWithScore], query: str
) -> list[NodeWithScore]:
    """Let each postprocessor see what the one before left."""
    for postprocessor in node_postprocessors:
        nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=QueryBundle(query))
    return nodes


class PostprocessedRetriever:
    """A retriever whose context is replaced at its end by what the postprocessors make of it, where that is another."""

    def __init__(self, retriever: StreamingRetriever, node_postprocessors: Sequence[BaseNodePostprocessor]) -> None:
        self._retriever = retriever
        self._node_postprocessors = tuple(node_postprocessors)

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas of the retriever, and a Replace. RetrievalError where a postprocessor raises."""
        documents: tuple[Document, ...] = ()
        async with closing(self._retriever.stream(query)) as deltas:
            async for delta in deltas:
                documents = context_after(documents, delta)
                yield delta
        try:
            nodes = await apply(self._node_postprocessors, to_nodes(documents), query)
        except Exception as error:
            raise RetrievalError(f"a node postprocessor failed: {error!r}", documents) from error
        if (final := from_nodes(nodes)) != documents:
            yield Replace(final, num_remaining=0)
