"""Answer questions from what a retriever finds, while it finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.pipeline.answer import AnswerStream, Call, Engine, Means, Places
from stream2llm_rag.prompt import DEFAULT_SYSTEM_PROMPT, ContextPrompt, Order, PromptTemplate
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Event

DEFAULT_MAX_TOKENS = 512
_NUM_TOKENIZING = 4  # threads at once: tokenising takes the processor, and the engine's processes want some of it


class StreamingRAG:
    """Answers questions from what a retriever finds, while it finds it.

    ``system_prompt`` and the ``history`` of a call go before the documents. ``sampling`` holds the fields of vLLM's
    ``SamplingParams`` (or is one); without ``max_tokens`` an answer has at most 512. ``order`` says where documents stand when
    a retriever refines its list: see :class:`~stream2llm_rag.prompt.ContextPrompt`. Of a retriever that fails after it found
    something the answer is made from that, and the result says so (``on_retrieval_error="answer"``), or its error is raised
    (``"raise"``). ``max_streams`` bounds the answers under way at once; one more raises :class:`CapacityError`.

    One instance serves many calls at once; it starts nothing of its own and needs no closing.
    """

    def __init__(
        self,
        engine: Engine,
        retriever: StreamingRetriever,
        *,
        system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
        sampling: Mapping[str, Any] | Any = None,
        order: Order = "stable",
        max_document_tokens: int | None = None,
        on_retrieval_error: str = "answer",
        max_streams: int = 512,
    ) -> None:
        if on_retrieval_error not in ("answer", "raise"):
            raise InvalidInputError(f"on_retrieval_error is {on_retrieval_error!r}. Write 'answer' or 'raise'.")
        if max_streams < 1:
            raise InvalidInputError(f"max_streams must be at least 1, got {max_streams}.")
        _check_retriever(retriever)
        self._means = Means(
            engine,
            retriever,
            self._open_prompt,
            on_retrieval_error == "raise",
            Places(max_streams),
            anyio.CapacityLimiter(_NUM_TOKENIZING),
        )
        self._system_prompt = system_prompt
        self._sampling = sampling
        self._order: Order = order
        self._max_document_tokens = max_document_tokens
        self._template: PromptTemplate | None = None
        self._template_turn = anyio.Lock()

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Mapping[str, str]] = (),
        streaming: bool = True,
        answer_by_s: float | None = None,
        sampling: Mapping[str, Any] | Any = None,
        on_event: Callable[[Event], None] | None = None,
        retriever: StreamingRetriever | None = None,
        system_prompt: str | None = None,
    ) -> AnswerStream:
        """Answer ``question``; use the returned stream under ``async with``.

        ``streaming=False`` does the same the usual way: retrieve all, then submit. ``answer_by_s`` seconds after the question's
        arrival retrieval is ended and the answer made from what is there. ``on_event`` is called with each event of the
        timeline as it happens. ``sampling``, ``retriever`` and ``system_prompt`` take the place of the instance's.
        """
        if retriever is not None:
            _check_retriever(retriever)
        if answer_by_s is not None and not answer_by_s >= 0:
            raise InvalidInputError(f"answer_by_s is a number of seconds from 0 on, got {answer_by_s}.")
        chosen = _with_max_tokens(self._sampling if sampling is None else sampling)
        call = Call(question, tuple(history), streaming, answer_by_s, chosen, on_event, retriever, system_prompt)
        return AnswerStream(self._means, call)

    async def answer(self, question: str, **options: Any) -> RAGResult:
        """Answer ``question`` and return just the result. Options are those of :meth:`stream`."""
        async with self.stream(question, **options) as answer:
            async for _ in answer:
                pass
            return answer.result

    async def _open_prompt(self, call: Call) -> ContextPrompt:
        engine = self._means.engine
        async with self._template_turn:
            if self._template is None:
                tokenizer = engine.tokenizer
                self._template = await anyio.to_thread.run_sync(
                    lambda: PromptTemplate(tokenizer, system_prompt=self._system_prompt)
                )
        max_tokens = _max_tokens(call.sampling)
        if max_tokens >= engine.max_model_len:
            raise InvalidInputError(
                f"max_tokens={max_tokens} leaves no room for a prompt in a context of {engine.max_model_len} tokens."
            )
        lay_out = partial(self._lay_out, self._template, call, engine.max_model_len - max_tokens)
        return await anyio.to_thread.run_sync(lay_out, limiter=self._means.tokenizing)

    def _lay_out(self, template: PromptTemplate, call: Call, max_prompt_tokens: int) -> ContextPrompt:
        """Tokenise history and question, which may be long: off the event loop."""
        if call.history or call.system_prompt is not None:
            template = template.with_history(call.history, system_prompt=call.system_prompt)
        return template.open(
            call.question,
            max_prompt_tokens=max_prompt_tokens,
            order=self._order,
            max_document_tokens=self._max_document_tokens,
        )


def _check_retriever(retriever: object) -> None:
    if not hasattr(retriever, "stream"):
        raise InvalidInputError(f"a retriever has a method stream(query), {type(retriever).__name__} has none.")


def _with_max_tokens(sampling: Mapping[str, Any] | Any) -> Mapping[str, Any] | Any:
    if sampling is None or isinstance(sampling, Mapping):
        return {"max_tokens": DEFAULT_MAX_TOKENS, **(sampling or {})}
    return sampling


def _max_tokens(sampling: Mapping[str, Any] | Any) -> int:
    found = sampling.get("max_tokens") if isinstance(sampling, Mapping) else getattr(sampling, "max_tokens", None)
    return found if isinstance(found, int) and found > 0 else DEFAULT_MAX_TOKENS
