"""Retriever and model fused into one Runnable: the context is computed while it is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from stream2llm_rag.documents import ContextDelta, Document
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.integrations.answering import Watched, describe, start_answer
from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.crossing import closing, forward
from stream2llm_rag.integrations.keeping import Kept, kept
from stream2llm_rag.integrations.langchain.messages import to_history, usage
from stream2llm_rag.integrations.langchain.retriever import Stream2LLMRetriever
from stream2llm_rag.integrations.langchain.runs import AnswerRuns
from stream2llm_rag.integrations.sources import StreamingSource
from stream2llm_rag.pipeline import StreamingRAG
from stream2llm_rag.prompt import DEFAULT_SYSTEM_PROMPT
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Event

RAGInput: TypeAlias = str | dict[str, Any]

_RAG_SETTINGS = ("system_prompt", "sampling", "order", "max_document_tokens", "on_retrieval_error", "max_streams")


class StreamingRAGRunnable(RunnableSerializable[RAGInput, AIMessage]):
    """A question in, the answer out, made from what ``retriever`` finds while it finds it.

    ``retriever`` is one of ours, or LangChain's (one, or a list: see :meth:`StreamingSource.from_langchain`). The input is a
    question, or a mapping with ``question`` and, if there is one, ``history``: messages before the question. The answer is an
    ``AIMessage`` (streamed, its chunks) whose ``response_metadata`` holds ``sources``, ``measures`` and what else
    :class:`RAGResult` tells; so ``{"question": RunnablePassthrough()} | rag | StrOutputParser()`` works.

    Retrieval and model are child runs that overlap. Custom events tell of progress: ``context_delta``, ``prefill``,
    ``eviction``, ``invalidation``, ``final_context`` and ``first_token``, with ``at_s`` (since the question's arrival),
    ``tokens`` and ``label``. ``on_retrieval_error``, ``order``, ``sampling`` and ``max_streams`` are those of
    :class:`StreamingRAG`; ``answer_by_s`` ends retrieval so many seconds after the question's arrival; ``streaming=False``
    does the same the usual way.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: BackgroundEngine = Field(exclude=True, repr=False)
    retriever: Any = Field(exclude=True, repr=False)
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT
    sampling: dict[str, Any] | None = None
    order: Literal["stable", "rank"] = "stable"
    max_document_tokens: int | None = None
    on_retrieval_error: Literal["answer", "raise"] = "answer"
    max_streams: int = Field(default=512, ge=1)
    answer_by_s: float | None = Field(default=None, ge=0)
    streaming: bool = True

    _rag: Kept[StreamingRAG] | None = PrivateAttr(default=None)

    @field_validator("retriever")
    @classmethod
    def _can_stream(cls, retriever: Any) -> StreamingRetriever:
        if isinstance(retriever, Stream2LLMRetriever):
            return cast("StreamingRetriever", retriever.retriever)
        if isinstance(retriever, Runnable | list | tuple):
            return StreamingSource.from_langchain(retriever)
        if not isinstance(retriever, StreamingRetriever):
            raise InvalidInputError(f"a retriever of ours or of LangChain is needed, but {type(retriever).__name__} came.")
        return retriever

    def invoke(self, input: RAGInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer; blocks this thread, not the engine's loop, from which it is refused."""
        run = self.engine.iterate(forward(lambda: _once(self.ainvoke(input, ensure_config(config), **kwargs))))
        with run as answers:
            return next(answers)

    async def ainvoke(self, input: RAGInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answer."""
        return await self._acall_with_config(self._answer, input, config, **kwargs)

    def stream(self, input: RAGInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[AIMessage]:
        """The answer in chunks, for a thread; refused on the engine's loop."""
        return self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: RAGInput, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[AIMessage]:
        """The answer in chunks. The last has usage and metadata."""
        async with closing(self.atransform(_single(input), config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def transform(self, input: Iterator[RAGInput], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[AIMessage]:
        """As :meth:`stream`, for a question that comes in pieces."""
        pieces = list(input)
        chosen = ensure_config(config)
        with self.engine.iterate(forward(lambda: self.atransform(_each(pieces), chosen, **kwargs))) as chunks:
            yield from chunks

    async def atransform(
        self, input: AsyncIterator[RAGInput], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessage]:
        """As :meth:`astream`, for a question that comes in pieces."""
        async with closing(self._atransform_stream_with_config(input, self._transform, config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answer(self, input: RAGInput, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> AIMessage:
        whole: AIMessageChunk | None = None
        async with closing(self._chunks(input, config)) as chunks:
            async for chunk in chunks:
                whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return AIMessage(**whole.model_dump(exclude={"type", "tool_call_chunks", "chunk_position"}))

    async def _transform(
        self, input: AsyncIterator[RAGInput], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
    ) -> AsyncIterator[AIMessage]:
        whole: Any = None
        async for piece in input:
            whole = piece if whole is None else whole + piece
        async with closing(self._chunks(whole, config)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _chunks(self, input: RAGInput, config: RunnableConfig) -> AsyncIterator[AIMessageChunk]:
        """The answer, on whichever loop runs now, where the retriever runs too."""
        question, before = _read(input)
        system, history = to_history(before)
        messages: list[BaseMessage] = [*before, HumanMessage(question)]
        if system is None and self.system_prompt:
            messages.insert(0, SystemMessage(self.system_prompt))
        async with AnswerRuns(config, question, messages, type(self.retriever).__name__) as runs:
            retriever = _InRun(self.retriever, runs)
            options = {
                "history": history,
                "system_prompt": system,
                "streaming": self.streaming,
                "answer_by_s": self.answer_by_s,
            }
            async with start_answer(self.engine, self._made_rag(), question, retriever, **options) as updates:
                async for update in updates:
                    if isinstance(update, Event):
                        await runs.note(update)
                        continue
                    chunk = self._last_chunk(update) if isinstance(update, RAGResult) else AIMessageChunk(content=update)
                    await runs.note_text(chunk)
                    yield chunk
            await runs.end()

    def _last_chunk(self, result: RAGResult) -> AIMessageChunk:
        name = str(getattr(self.engine.engine.tokenizer, "name_or_path", "") or "stream2llm")
        return AIMessageChunk(
            content="",
            usage_metadata=usage(result.prompt_tokens, len(result.token_ids)),
            response_metadata={"model_name": name, "finish_reason": result.finish_reason, **describe(result)},
            chunk_position="last",
        )

    def _made_rag(self) -> StreamingRAG:
        """Made once, and anew where a setting was changed, as in a copy."""
        settings = {name: getattr(self, name) for name in _RAG_SETTINGS}
        self._rag = kept(self._rag, (self.engine, settings), lambda: self._make_rag(settings))
        return self._rag.value

    def _make_rag(self, settings: dict[str, Any]) -> StreamingRAG:
        return StreamingRAG(self.engine.engine, self.retriever, **settings)


class _InRun:
    """The retriever, inside the retriever run: what it calls of LangChain's becomes a child of that."""

    def __init__(self, retriever: StreamingRetriever, runs: AnswerRuns) -> None:
        self._retriever = Watched(retriever, self._keep)
        self._runs = runs

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas of the retriever, unchanged."""
        var_child_runnable_config.set(self._runs.retriever_config)  # in a task of its own, whose context nobody shares
        async with closing(self._retriever.stream(query)) as deltas:
            async for delta in deltas:
                yield delta

    def _keep(self, documents: tuple[Document, ...]) -> None:
        self._runs.documents = documents


def _read(input: RAGInput) -> tuple[str, list[BaseMessage]]:
    """The question and the messages before it. InvalidInputError for anything else."""
    match input:
        case str():
            return input, []
        case Mapping():
            question = input.get("question")
            unknown = input.keys() - {"question", "history"}
            if isinstance(question, str) and not unknown:
                return question, _messages(input.get("history") or [])
    raise InvalidInputError(
        f"the input is a question, or {{'question': str, 'history': messages}}, but {input!r} came. Pick the fields that are "
        "meant before: {'question': ...} | rag."
    )


def _messages(history: Any) -> list[BaseMessage]:
    """A history in any of LangChain's spellings. InvalidInputError where it is none."""
    try:
        return convert_to_messages(history)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InvalidInputError(f"the history is a list of messages, but {history!r} came: {error}") from error


async def _once(answer: Any) -> AsyncIterator[AIMessage]:
    yield await answer


async def _single(input: RAGInput) -> AsyncIterator[RAGInput]:
    yield input


async def _each(pieces: list[RAGInput]) -> AsyncIterator[RAGInput]:
    for piece in pieces:
        yield piece
