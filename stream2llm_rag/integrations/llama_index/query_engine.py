"""Retriever and model fused into one query engine: the context is computed while it is found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.types import TokenAsyncGen, TokenGen

from stream2llm_rag.documents import Document
from stream2llm_rag.integrations.answering import Watched, describe, start_answer
from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.crossing import forward
from stream2llm_rag.integrations.llama_index.nodes import to_nodes
from stream2llm_rag.integrations.llama_index.retriever import Stream2LLMRetriever
from stream2llm_rag.integrations.llama_index.source import postprocessed
from stream2llm_rag.integrations.llama_index.telling import Telling
from stream2llm_rag.integrations.sources import StreamingSource
from stream2llm_rag.integrations.streams import LoopStream, ThreadStream
from stream2llm_rag.pipeline import StreamingRAG
from stream2llm_rag.prompt import DEFAULT_SYSTEM_PROMPT
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Event

logger = logging.getLogger(__name__)


class StreamingRAGQueryEngine(BaseQueryEngine):
    """Answers queries from what ``retriever`` finds while it finds it.

    ``retriever`` is one of ours, or LlamaIndex's (one, or a list: see :meth:`StreamingSource.from_llama_index`);
    ``node_postprocessors`` see its whole context at its end. With ``streaming`` a query returns at once, with a response whose
    text streams and whose ``source_nodes`` grow as they are found; its ``metadata`` has ``sources``, ``measures`` and what else
    :class:`RAGResult` tells, when the answer has ended. ``on_event`` is called with each event of the timeline, in a workflow
    for instance to write it to the stream.

    ``system_prompt``, ``sampling``, ``order``, ``max_document_tokens``, ``on_retrieval_error`` and ``max_streams`` are those of
    :class:`StreamingRAG`; ``answer_by_s`` ends retrieval so many seconds after the query's arrival; ``stream_context=False``
    retrieves everything first, the usual way.
    """

    def __init__(
        self,
        engine: BackgroundEngine,
        retriever: StreamingRetriever | BaseRetriever | Sequence[BaseRetriever],
        *,
        streaming: bool = False,
        node_postprocessors: Sequence[BaseNodePostprocessor] = (),
        system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
        sampling: dict[str, Any] | None = None,
        order: Literal["stable", "rank"] = "stable",
        max_document_tokens: int | None = None,
        on_retrieval_error: Literal["answer", "raise"] = "answer",
        max_streams: int = 512,
        answer_by_s: float | None = None,
        stream_context: bool = True,
        on_event: Callable[[Event], None] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._engine = engine
        self._retriever = postprocessed(_streaming(retriever), node_postprocessors)
        self._streaming = streaming
        self._options = {"answer_by_s": answer_by_s, "streaming": stream_context}
        self._on_event = on_event
        self._rag = StreamingRAG(
            engine.engine,
            self._retriever,
            system_prompt=system_prompt,
            sampling=sampling,
            order=order,
            max_document_tokens=max_document_tokens,
            on_retrieval_error=on_retrieval_error,
            max_streams=max_streams,
        )
        super().__init__(callback_manager=callback_manager)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """What the retriever finds, without an answer."""
        return Stream2LLMRetriever(self._retriever).retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """What the retriever finds, without an answer."""
        return await Stream2LLMRetriever(self._retriever).aretrieve(query_bundle)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self.callback_manager.event(
            CBEventType.QUERY, payload={EventPayload.QUERY_STR: query_bundle.query_str}
        ) as query_event:
            live = _Live(query_bundle)
            texts = self._engine.iterate(forward(lambda: self._texts(live)))
            response = live.streaming(texts) if self._streaming else live.whole("".join(texts))
            query_event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self.callback_manager.event(
            CBEventType.QUERY, payload={EventPayload.QUERY_STR: query_bundle.query_str}
        ) as query_event:
            live = _Live(query_bundle)
            # Started now, on this loop, so that retrieval does not wait for a reader.
            texts = LoopStream(asyncio.get_running_loop(), forward(lambda: self._texts(live)))
            texts.transfer.start()
            response = live.astreaming(texts) if self._streaming else live.whole("".join([text async for text in texts]))
            query_event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _texts(self, live: _Live) -> AsyncIterator[str]:
        """The pieces of the answer, on whichever loop runs now, where the retriever runs too."""
        question = live.query.query_str
        model = {"max_model_len": self._engine.engine.max_model_len}
        retriever = Watched(self._retriever, live.see)
        with Telling(self, live.query, model, live.nodes) as telling:
            async with start_answer(self._engine, self._rag, question, retriever, **self._options) as updates:
                async for update in updates:
                    if isinstance(update, Event):
                        telling.note(update)
                        self._report(update)
                    elif isinstance(update, RAGResult):
                        live.end(update)
                        telling.end(update)
                    else:
                        telling.note_text(update)
                        yield update

    def _report(self, event: Event) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("on_event failed; the answer goes on")


class _Live:
    """The parts of a response that change while it is made; the response has these very objects."""

    def __init__(self, query: QueryBundle) -> None:
        self.query = query
        self.nodes: list[NodeWithScore] = []
        self.metadata: dict[str, Any] = {"question": query.query_str}  # not empty: some that take a response drop an empty one

    def see(self, documents: tuple[Document, ...]) -> None:
        """Retrieval has found these."""
        self.nodes[:] = to_nodes(documents)

    def end(self, result: RAGResult) -> None:
        """The answer was made from the documents of ``result``."""
        self.nodes[:] = to_nodes(placed.document for placed in result.documents)
        self.metadata.update(describe(result))

    def whole(self, text: str) -> Response:
        return Response(text, source_nodes=self.nodes, metadata=self.metadata)

    def streaming(self, texts: ThreadStream[str]) -> StreamingResponse:
        return StreamingResponse(_generator(texts), source_nodes=self.nodes, metadata=self.metadata)

    def astreaming(self, texts: LoopStream[str]) -> AsyncStreamingResponse:
        return AsyncStreamingResponse(_agenerator(texts), source_nodes=self.nodes, metadata=self.metadata)


def _generator(texts: ThreadStream[str]) -> TokenGen:
    with texts:
        yield from texts


async def _agenerator(texts: LoopStream[str]) -> TokenAsyncGen:
    async with texts:
        async for text in texts:
            yield text


def _streaming(retriever: StreamingRetriever | BaseRetriever | Sequence[BaseRetriever]) -> StreamingRetriever:
    if isinstance(retriever, Stream2LLMRetriever):
        return retriever.streaming_retriever
    if isinstance(retriever, BaseRetriever | Sequence):
        return StreamingSource.from_llama_index(retriever)
    return retriever
