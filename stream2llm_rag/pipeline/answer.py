"""One answer on its way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from stream2llm_rag.documents import ContextDelta
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.session import OutputDelta, Session, TokenIds
from stream2llm_rag.errors import CapacityError, LifecycleError
from stream2llm_rag.pipeline.feeder import Feeder
from stream2llm_rag.pipeline.retrieval import Retrieval
from stream2llm_rag.prompt import ContextPrompt
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Event, EventKind, Recorder, Timeline

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

_EVENT_OF = {
    StepKind.COMPUTED: EventKind.COMPUTED,
    StepKind.EVICTED: EventKind.EVICTED,
    StepKind.RESUMED: EventKind.RESUMED,
    StepKind.INVALIDATED: EventKind.INVALIDATED,
}


class Engine(Protocol):
    """What the pipeline needs of an engine; ``Stream2LLMEngine``, ``RemoteEngine`` and ``FakeEngine`` have it."""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        ...

    async def open(self, prefix: TokenIds = (), *, on_record: Callable[[StepRecord], None] | None = None) -> Session:
        """Open a streaming request."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of ``StreamingRAG.stream`` asks for."""

    question: str
    history: tuple[Mapping[str, str], ...]
    streaming: bool
    answer_by_s: float | None
    sampling: Mapping[str, Any] | Any
    on_event: Callable[[Event], None] | None
    retriever: StreamingRetriever | None = None
    system_prompt: str | None = None


class Places:
    """A limit on answers under way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_taken = 0

    def take(self) -> None:
        """Take a place; :class:`CapacityError` when there is none."""
        if self._num_taken >= self._limit:
            raise CapacityError(f"{self._num_taken} answers are under way, the limit is max_streams={self._limit}.")
        self._num_taken += 1

    def leave(self) -> None:
        """Give a place back."""
        self._num_taken -= 1


@dataclass(frozen=True, slots=True)
class Means:
    """What answers are made with, shared by all of one ``StreamingRAG``."""

    engine: Engine
    retriever: StreamingRetriever
    open_prompt: Callable[[Call], Awaitable[ContextPrompt]]
    raises_retrieval_errors: bool
    places: Places
    tokenizing: anyio.CapacityLimiter


class AnswerStream(AbstractAsyncContextManager["AnswerStream"]):
    """One answer on its way: an async iterator over its text, used under ``async with``.

    Retrieval starts when the block is entered. Leaving the block early ends retrieval, aborts the request and frees everything
    that belonged to it. When the iteration has ended :attr:`result` is there. Text that nobody reads yet is kept, at most the
    answer's ``max_tokens``.
    """

    def __init__(self, means: Means, call: Call) -> None:
        self._means = means
        self._call = call
        self._recorder = self._make_recorder()
        self._tasks: TaskGroup | None = None
        self._retrieval = Retrieval()
        self._texts: deque[str] = deque()
        self._moved = anyio.Event()
        self._error: BaseException | None = None
        self._result: RAGResult | None = None

    @property
    def result(self) -> RAGResult:
        """The answer and its measures; :class:`LifecycleError` before the end of the iteration."""
        if self._result is None:
            raise LifecycleError("the answer has not ended yet. Read the stream to its end first: async for text in answer.")
        return self._result

    @property
    def timeline(self) -> Timeline:
        """What happened so far."""
        return self._recorder.timeline()

    def answer_now(self) -> None:
        """End retrieval and answer with what is there."""
        self._retrieval.cut_short()

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise LifecycleError("an answer is opened once. Ask again with rag.stream().")
        self._means.places.take()
        self._recorder = self._make_recorder()
        try:
            self._prompt = await self._means.open_prompt(self._call)
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        except BaseException:
            self._means.places.leave()
            raise
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)  # told of the block's error it would wrap it in a group
        finally:
            self._means.places.leave()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._tasks is None:
            raise LifecycleError("the answer has not been opened. Write: async with rag.stream(...) as answer.")
        while not self._texts:
            if self._error is not None:
                raise self._error
            if self._result is not None:
                raise StopAsyncIteration
            if self._moved.is_set():  # else somebody waits for it already
                self._moved = anyio.Event()
            await self._moved.wait()
        return self._texts.popleft()

    def _make_recorder(self) -> Recorder:
        self._arrived_at = time.monotonic()
        mode = "streaming" if self._call.streaming else "non_streaming"
        return Recorder(self._call.question, mode, self._arrived_at, listener=self._call.on_event)

    async def _run(self) -> None:
        try:
            await (self._run_streaming() if self._call.streaming else self._run_usual())
        except Exception as error:
            self._error = error
        finally:
            if self._result is None and self._error is None:
                self._error = LifecycleError("the answer was cancelled before its end.")
            self._moved.set()

    async def _run_streaming(self) -> None:
        async with await self._means.engine.open(self._prompt.prefix_ids, on_record=self._note) as session:
            feeder = Feeder(self._prompt, session, self._means.tokenizing, self._recorder)
            with session.while_alive():
                await self._retrieve(feeder.feed)
            await self._finish(session, self._prompt.suffix_ids, feeder.last_delta_tokens)

    async def _run_usual(self) -> None:
        deltas: list[ContextDelta] = []

        async def keep(batch: Sequence[ContextDelta]) -> None:
            deltas.extend(batch)

        async with await self._means.engine.open(on_record=self._note) as session:
            with session.while_alive():
                await self._retrieve(keep)
            feeder = Feeder(self._prompt, None, self._means.tokenizing, self._recorder)
            await feeder.feed(deltas)
            await self._finish(session, self._prompt.context_ids + self._prompt.suffix_ids, feeder.last_delta_tokens)

    async def _retrieve(self, take: Callable[[Sequence[ContextDelta]], Any]) -> None:
        deadline = None if self._call.answer_by_s is None else self._arrived_at + self._call.answer_by_s
        assert self._tasks is not None
        retriever = self._call.retriever or self._means.retriever
        await self._retrieval.run(retriever, self._call.question, deadline, take, self._recorder, self._tasks)
        num_suffix_tokens = len(self._prompt.suffix_ids)
        self._recorder.record(EventKind.FINAL_CONTEXT, at=self._retrieval.ended_at, tokens=num_suffix_tokens)
        error = self._retrieval.error
        if error is not None and (self._means.raises_retrieval_errors or not error.documents):
            raise error

    async def _finish(self, session: Session, suffix: list[int], last_delta_tokens: int) -> None:
        outputs: list[OutputDelta] = []
        first_token_at: float | None = None
        async for output in await session.finish(suffix, self._call.sampling):
            if first_token_at is None and output.token_ids:
                first_token_at = time.monotonic()
                self._recorder.record(EventKind.FIRST_TOKEN, at=first_token_at)
            outputs.append(output)
            if output.text:
                self._texts.append(output.text)
                self._moved.set()
        token_ids = tuple(token for output in outputs for token in output.token_ids)
        self._recorder.record(EventKind.DONE, tokens=len(token_ids))
        final_at, retrieval = self._retrieval.ended_at, self._retrieval
        first_at = final_at if first_token_at is None else first_token_at
        measures = {
            "ttft_s": first_at - final_at,
            "arrival_to_first_token_s": first_at - self._arrived_at,
            "retrieval_s": final_at - self._arrived_at,
            "prompt_tokens": session.num_tokens,
            "overlap_tokens": session.stats.overlap_at(final_at) if self._call.streaming else 0,
            "computed_tokens": session.stats.computed_tokens,
            "invalidated_tokens": session.stats.invalidated_tokens,
            "last_delta_tokens": last_delta_tokens,
            "waiting_s": session.stats.waiting_s,
            "idle_s": session.stats.idle_s,
        }
        self._result = RAGResult(
            question=self._call.question,
            text="".join(output.text for output in outputs),
            token_ids=token_ids,
            finish_reason=outputs[-1].finish_reason if outputs else None,
            streaming=self._call.streaming,
            documents=self._prompt.documents,
            left_out=self._prompt.left_out,
            skipped=tuple(retrieval.skipped),
            crawl=retrieval.crawl.report(),
            timeline=self._recorder.timeline(measures),
            preemptions={
                "recompute": session.stats.num_evictions - session.stats.num_swaps,
                "swap": session.stats.num_swaps,
            },
            retrieval_error=retrieval.error,
            deadline_reached=retrieval.was_cut_short,
            received_tokens=session.stats.received_tokens,
            handover_error=session.stats.handover_error,
            **measures,  # type: ignore[arg-type]
        )

    def _note(self, record: StepRecord) -> None:
        if record.kind in _EVENT_OF:
            self._recorder.record(_EVENT_OF[record.kind], at=record.started_s, until=record.ended_s, tokens=record.num_tokens)
