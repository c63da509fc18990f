"""A retriever of ours, for LlamaIndex."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from stream2llm_rag.documents import Document, context_after
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.integrations.crossing import closing
from stream2llm_rag.integrations.hosting import run_hosted
from stream2llm_rag.integrations.llama_index.nodes import to_nodes
from stream2llm_rag.retrievers.base import StreamingRetriever


class Stream2LLMRetriever(BaseRetriever):
    """Any of our retrievers (``WebCrawler``, a vector search, a ``StreamingSource``): its final context, as nodes.

    ``similarity_top_k`` limits how many. For calls that are not async, let the engine host a retriever that holds connections
    (``engine.host(WebCrawler(...))``); others run on a loop of their own for each call. ``options`` are those of LlamaIndex's
    ``BaseRetriever``.
    """

    def __init__(self, retriever: StreamingRetriever, *, similarity_top_k: int | None = None, **options: Any) -> None:
        if not isinstance(retriever, StreamingRetriever):
            raise InvalidInputError(f"a retriever has a method stream(query), {type(retriever).__name__} has none.")
        if similarity_top_k is not None and similarity_top_k < 1:
            raise InvalidInputError(f"similarity_top_k must be at least 1, got {similarity_top_k}.")
        self.streaming_retriever = retriever
        self.similarity_top_k = similarity_top_k
        super().__init__(**options)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run_hosted(self.streaming_retriever, lambda: self._aretrieve(query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        documents: tuple[Document, ...] = ()
        async with closing(self.streaming_retriever.stream(query_bundle.query_str)) as deltas:
            async for delta in deltas:
                documents = context_after(documents, delta)
        return to_nodes(documents[: self.similarity_top_k])
