"""A retriever of ours, for LangChain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, field_validator

from stream2llm_rag.documents import ContextDelta, Document, context_after
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.integrations.crossing import closing
from stream2llm_rag.integrations.hosting import run_hosted
from stream2llm_rag.integrations.langchain.handlers import told_of_the_end
from stream2llm_rag.integrations.langchain.messages import to_langchain
from stream2llm_rag.retrievers.base import StreamingRetriever


class Stream2LLMRetriever(BaseRetriever):
    """Any of our retrievers (``WebCrawler``, a vector search, a ``StreamingSource``): its final context, as documents.

    ``k`` limits how many, and can be given per call: ``retriever.invoke(question, k=3)``. :meth:`astream_deltas` gives what it
    finds while it finds it. For calls that are not async, let the engine host a retriever that holds connections
    (``engine.host(WebCrawler(...))``); others run on a loop of their own for each call.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: Any = Field(exclude=True, repr=False)
    k: int | None = Field(default=None, ge=1)

    @field_validator("retriever")
    @classmethod
    def _can_stream(cls, retriever: Any) -> StreamingRetriever:
        if not isinstance(retriever, StreamingRetriever):
            raise InvalidInputError(f"a retriever has a method stream(query), {type(retriever).__name__} has none.")
        return retriever

    async def astream_deltas(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas of the retriever, each as soon as it comes; ``k`` does not count."""
        async with closing(self.retriever.stream(query)) as deltas:
            async for delta in deltas:
                yield delta

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[LangChainDocument]:
        return run_hosted(self.retriever, lambda: self._find(query, k))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[LangChainDocument]:
        try:
            return await self._find(query, k)
        except asyncio.CancelledError as error:
            # LangChain tells of errors only, and leaves the run open.
            await told_of_the_end(run_manager.on_retriever_error(error))
            raise

    async def _find(self, query: str, k: int | None) -> list[LangChainDocument]:
        documents: tuple[Document, ...] = ()
        async with closing(self.retriever.stream(query)) as deltas:
            async for delta in deltas:
                documents = context_after(documents, delta)
        return [to_langchain(document) for document in documents[: k or self.k]]
