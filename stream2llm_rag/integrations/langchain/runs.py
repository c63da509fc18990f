"""The runs of one answer: retrieval and model, two children that overlap, and custom events for what happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    AsyncCallbackManagerForRetrieverRun,
    adispatch_custom_event,
)
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_async_callback_manager_for_config, patch_config

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import LifecycleError, RetrievalError
from stream2llm_rag.integrations.langchain.handlers import told, told_of_the_end
from stream2llm_rag.integrations.langchain.messages import to_langchain
from stream2llm_rag.timeline import Event, EventKind

_CUSTOM_EVENTS = {
    EventKind.DELTA: "context_delta",
    EventKind.COMPUTED: "prefill",
    EventKind.EVICTED: "eviction",
    EventKind.INVALIDATED: "invalidation",
    EventKind.FINAL_CONTEXT: "final_context",
    EventKind.FIRST_TOKEN: "first_token",
}
_END_OF_RETRIEVAL = (EventKind.RETRIEVAL_END, EventKind.DEADLINE)


class AnswerRuns:
    """Opens a retriever run and a chat model run under that of ``config``, and closes both however the block ends.

    Handlers are told of starts and ends though the answer is cancelled meanwhile: a run that a tracer has seen start stays open
    for it until it sees its end. One that takes ten seconds longer is left, and of a run whose start it was told of nobody sees
    the end.

    ``messages`` are those that the model run begins with: the documents are not there yet.
    """

    def __init__(self, config: RunnableConfig, question: str, messages: Sequence[BaseMessage], retriever_name: str) -> None:
        self._config = config
        self._question = question
        self._messages = list(messages)
        self._retriever_name = retriever_name
        self._retrieval: AsyncCallbackManagerForRetrieverRun | None = None
        self._model: AsyncCallbackManagerForLLMRun | None = None
        self._chunks: list[ChatGenerationChunk] = []
        self.documents: tuple[Document, ...] = ()
        """What retrieval has found so far; whoever reads the retriever sets it."""

    @property
    def retriever_config(self) -> RunnableConfig:
        """What runs inside retrieval has this, to be its child."""
        assert self._retrieval is not None
        return patch_config(self._config, callbacks=self._retrieval.get_child())

    async def __aenter__(self) -> Self:
        try:
            await told(self._start())
        except BaseException as error:
            await told_of_the_end(self._fail(error))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await told_of_the_end(self._fail(error or LifecycleError("the answer was left before its end.")))

    async def note(self, event: Event) -> None:
        """Tell of one thing that happened."""
        if event.kind in _END_OF_RETRIEVAL:
            await self._end_retrieval()
        elif event.kind is EventKind.RETRIEVAL_FAILED:
            await self._fail_retrieval(RetrievalError(event.detail or "retrieval failed", self.documents))
        elif event.kind in _CUSTOM_EVENTS:
            data: dict[str, Any] = {"at_s": event.start_s, "tokens": event.tokens, "label": event.label}
            await adispatch_custom_event(_CUSTOM_EVENTS[event.kind], data, config=self._config)

    async def note_text(self, message: AIMessageChunk) -> None:
        """Tell of a piece of the answer."""
        assert self._model is not None
        chunk = ChatGenerationChunk(message=message)
        self._chunks = [chunk] if not self._chunks else [self._chunks[0] + chunk]
        await self._model.on_llm_new_token(message.text, chunk=chunk)

    async def end(self) -> None:
        """The answer is complete."""
        await self._end_retrieval()
        model, self._model = self._model, None
        if model is not None:
            await told(model.on_llm_end(LLMResult(generations=[list(self._chunks)])))

    async def _start(self) -> None:
        manager = get_async_callback_manager_for_config(self._config)
        self._retrieval = await manager.on_retriever_start(None, self._question, name=self._retriever_name)
        [self._model] = await manager.on_chat_model_start({}, [self._messages], name="ChatStream2LLM")

    async def _fail(self, error: BaseException) -> None:
        ends: list[Awaitable[None]] = []
        if self._retrieval is not None:
            ends.append(self._retrieval.on_retriever_error(error))
        if self._model is not None:
            ends.append(self._model.on_llm_error(error, response=LLMResult(generations=[list(self._chunks[-1:])])))
        await asyncio.gather(*ends)

    async def _end_retrieval(self) -> None:
        run, self._retrieval = self._retrieval, None
        if run is not None:
            await told(run.on_retriever_end([to_langchain(document) for document in self.documents]))

    async def _fail_retrieval(self, error: BaseException) -> None:
        run, self._retrieval = self._retrieval, None
        if run is not None:
            await told(run.on_retriever_error(error))
