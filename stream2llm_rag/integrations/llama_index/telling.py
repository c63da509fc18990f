"""Tells LlamaIndex's instrumentation of one answer: two spans that overlap, retrieval and generation, and their events."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatInProgressEvent, LLMChatStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.schema import NodeWithScore, QueryBundle

from stream2llm_rag.errors import LifecycleError
from stream2llm_rag.integrations.answering import describe
from stream2llm_rag.integrations.llama_index.events import AnswerEndEvent, ContextProgressEvent, Span
from stream2llm_rag.result import RAGResult
from stream2llm_rag.timeline import Event, EventKind

_END_OF_RETRIEVAL = (EventKind.RETRIEVAL_END, EventKind.RETRIEVAL_FAILED, EventKind.DEADLINE)


class Telling:
    """Used as a context manager round one answer; both spans end with it, however it ends.

    ``nodes`` is the list of source nodes as it grows: that of the response.
    """

    def __init__(self, owner: Any, query: QueryBundle, model: dict[str, Any], nodes: list[NodeWithScore]) -> None:
        self._query = query
        self._model = model
        self._nodes = nodes
        self._messages = [ChatMessage(role=MessageRole.USER, content=query.query_str)]
        self._text = ""
        self._retrieval: Span | None = Span(owner, "retrieve", query_bundle=query)
        self._generation: Span | None = Span(owner, "generate", query_bundle=query)

    def __enter__(self) -> Self:
        for span in (self._retrieval, self._generation):
            assert span is not None
            span.enter()
        self._tell(self._retrieval, RetrievalStartEvent(str_or_query_bundle=self._query))
        start = LLMChatStartEvent(messages=self._messages, additional_kwargs={}, model_dict=self._model)
        self._tell(self._generation, start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for span in (self._retrieval, self._generation):
            if span is not None:
                span.drop(error or LifecycleError("the answer was left before its end."))

    def note(self, event: Event) -> None:
        """Tell of one thing that happened."""
        progress = ContextProgressEvent(kind=event.kind.value, at_s=event.start_s, tokens=event.tokens, label=event.label)
        self._tell(self._generation, progress)
        if event.kind in _END_OF_RETRIEVAL:
            self._end_retrieval()

    def note_text(self, text: str) -> None:
        """Tell of a piece of the answer."""
        self._text += text
        self._tell(self._generation, LLMChatInProgressEvent(messages=self._messages, response=self._response(text)))

    def end(self, result: RAGResult) -> None:
        """The answer is complete."""
        self._end_retrieval()
        self._tell(self._generation, LLMChatEndEvent(messages=self._messages, response=self._response("")))
        end = AnswerEndEvent(query=self._query.query_str, text=result.text, measures=describe(result)["measures"])
        self._tell(self._generation, end)
        if self._generation is not None:
            self._generation.exit(result)
            self._generation = None

    def _end_retrieval(self) -> None:
        span, self._retrieval = self._retrieval, None
        if span is not None:
            span.tell(RetrievalEndEvent(str_or_query_bundle=self._query, nodes=list(self._nodes)))
            span.exit(list(self._nodes))

    def _response(self, delta: str) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=self._text), delta=delta)

    def _tell(self, span: Span | None, event: Any) -> None:
        if span is not None:
            span.tell(event)
