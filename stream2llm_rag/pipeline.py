"""Join a retriever and an engine: the context streams into the KV cache while it is found."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from stream2llm_rag.documents import Append, ContextDelta, Document, RetrievalEvent
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.session import OutputDelta, Session, TokenIds
from stream2llm_rag.errors import CapacityError, InvalidInputError, LifecycleError, RetrievalError
from stream2llm_rag.prompt import ContextPrompt, PromptTemplate
from stream2llm_rag.prompt.context import Order
from stream2llm_rag.prompt.template import DEFAULT_SYSTEM_PROMPT
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Event, EventKind, Recorder, Timeline
from stream2llm_rag.token_ids import common_prefix

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

DEFAULT_MAX_TOKENS = 512
_MAX_WAITING_DELTAS = 64
_CLOSE_TIMEOUT_S = 10.0
_EVENT_OF = {
    StepKind.COMPUTED: EventKind.COMPUTED,
    StepKind.EVICTED: EventKind.EVICTED,
    StepKind.RESUMED: EventKind.RESUMED,
    StepKind.INVALIDATED: EventKind.INVALIDATED,
}


class Engine(Protocol):
    """What the pipeline needs of an engine; ``Stream2LLMEngine`` and ``FakeEngine`` have it."""

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
        if not hasattr(retriever, "stream"):
            raise InvalidInputError(f"a retriever has a method stream(query), {type(retriever).__name__} has none.")
        self._engine = engine
        self._retriever = retriever
        self._system_prompt = system_prompt
        self._sampling = sampling
        self._order: Order = order
        self._max_document_tokens = max_document_tokens
        self._raises = on_retrieval_error == "raise"
        self._max_streams = max_streams
        self._num_streams = 0
        self._template: PromptTemplate | None = None
        self._template_turn = anyio.Lock()
        self._tokenizing = anyio.CapacityLimiter(4)

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Mapping[str, str]] = (),
        streaming: bool = True,
        answer_by_s: float | None = None,
        sampling: Mapping[str, Any] | Any = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> AnswerStream:
        """Answer ``question``; use the returned stream under ``async with``.

        ``streaming=False`` does the same the usual way: retrieve all, then submit. ``answer_by_s`` seconds after the question's
        arrival retrieval is ended and the answer made from what is there. ``on_event`` is called with each event of the
        timeline as it happens. ``sampling`` takes the place of the instance's.
        """
        if answer_by_s is not None and answer_by_s < 0:
            raise InvalidInputError(f"answer_by_s is a number of seconds from 0 on, got {answer_by_s}.")
        call = _Call(question, tuple(history), streaming, answer_by_s, _with_max_tokens(sampling or self._sampling), on_event)
        return AnswerStream(self, call)

    async def answer(self, question: str, **options: Any) -> RAGResult:
        """Answer ``question`` and return just the result. Options are those of :meth:`stream`."""
        async with self.stream(question, **options) as answer:
            async for _ in answer:
                pass
            return answer.result

    async def _open_prompt(self, call: _Call) -> ContextPrompt:
        async with self._template_turn:
            if self._template is None:
                tokenizer = self._engine.tokenizer
                self._template = await anyio.to_thread.run_sync(
                    lambda: PromptTemplate(tokenizer, system_prompt=self._system_prompt)
                )
        template = self._template.with_history(call.history) if call.history else self._template
        max_tokens = _max_tokens(call.sampling)
        if max_tokens >= self._engine.max_model_len:
            raise InvalidInputError(
                f"max_tokens={max_tokens} leaves no room for a prompt in a context of {self._engine.max_model_len} tokens."
            )
        return template.open(
            call.question,
            max_prompt_tokens=self._engine.max_model_len - max_tokens,
            order=self._order,
            max_document_tokens=self._max_document_tokens,
        )

    def _take_place(self) -> None:
        if self._num_streams >= self._max_streams:
            raise CapacityError(f"{self._num_streams} answers are under way, the limit is max_streams={self._max_streams}.")
        self._num_streams += 1

    def _leave_place(self) -> None:
        self._num_streams -= 1


@dataclass(frozen=True, slots=True)
class _Call:
    question: str
    history: tuple[Mapping[str, str], ...]
    streaming: bool
    answer_by_s: float | None
    sampling: Mapping[str, Any] | Any
    on_event: Callable[[Event], None] | None


class AnswerStream(AbstractAsyncContextManager["AnswerStream"]):
    """One answer on its way: an async iterator over its text, used under ``async with``.

    Retrieval starts when the block is entered. Leaving the block early ends retrieval, aborts the request and frees everything
    that belonged to it. When the iteration has ended :attr:`result` is there. Text that nobody reads yet is kept, at most the
    answer's ``max_tokens``.
    """

    def __init__(self, rag: StreamingRAG, call: _Call) -> None:
        self._rag = rag
        self._call = call
        self._recorder = self._make_recorder()
        self._tasks: TaskGroup | None = None
        self._retrieval = _Retrieval()
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
        self._rag._take_place()
        self._recorder = self._make_recorder()
        try:
            self._prompt = await self._rag._open_prompt(self._call)
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        except BaseException:
            self._rag._leave_place()
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
            self._rag._leave_place()

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
            self._moved.set()

    async def _run_streaming(self) -> None:
        async with await self._rag._engine.open(self._prompt.prefix_ids, on_record=self._note) as session:
            feeder = _Feeder(self._prompt, session, self._rag._tokenizing, self._recorder)
            with session.while_alive():
                await self._retrieve(feeder.feed)
            await self._finish(session, self._prompt.suffix_ids, feeder.last_delta_tokens)

    async def _run_usual(self) -> None:
        deltas: list[ContextDelta] = []

        async def keep(batch: Sequence[ContextDelta]) -> None:
            deltas.extend(batch)

        async with await self._rag._engine.open(on_record=self._note) as session:
            with session.while_alive():
                await self._retrieve(keep)
            feeder = _Feeder(self._prompt, None, self._rag._tokenizing, self._recorder)
            await feeder.feed(deltas)
            await self._finish(session, self._prompt.context_ids + self._prompt.suffix_ids, feeder.last_delta_tokens)

    async def _retrieve(self, take: Callable[[Sequence[ContextDelta]], Any]) -> None:
        deadline = None if self._call.answer_by_s is None else self._arrived_at + self._call.answer_by_s
        await self._retrieval.run(self._rag._retriever, self._call.question, deadline, take, self._recorder)
        num_suffix_tokens = len(self._prompt.suffix_ids)
        self._recorder.record(EventKind.FINAL_CONTEXT, at=self._retrieval.ended_at, tokens=num_suffix_tokens)
        error = self._retrieval.error
        if error is not None and (self._rag._raises or not error.documents):
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
            timeline=self._recorder.timeline(measures),
            preemptions={"recompute": session.stats.num_evictions},
            retrieval_error=retrieval.error,
            deadline_reached=retrieval.was_cut_short,
            **measures,  # type: ignore[arg-type]
        )

    def _note(self, record: StepRecord) -> None:
        if record.kind in _EVENT_OF:
            self._recorder.record(_EVENT_OF[record.kind], at=record.started_s, until=record.ended_s, tokens=record.num_tokens)


class _Retrieval:
    """Reads a retriever to its end, or to where it is cut short, ahead of whoever takes what it brings."""

    def __init__(self) -> None:
        self.skipped: list[RetrievalEvent] = []
        self.error: RetrievalError | None = None
        self.ended_at = 0.0
        self.was_cut_short = False
        self._scope = anyio.CancelScope()

    def cut_short(self) -> None:
        self._scope.cancel()

    async def run(
        self,
        retriever: StreamingRetriever,
        question: str,
        deadline: float | None,
        take: Callable[[Sequence[ContextDelta]], Any],
        recorder: Recorder,
    ) -> None:
        """Hand deltas to ``take``, all that came meanwhile at a time, until retrieval has ended and all are taken."""
        sender, receiver = anyio.create_memory_object_stream[ContextDelta](_MAX_WAITING_DELTAS)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks, receiver:
            tasks.start_soon(self._read, retriever, question, deadline, sender, recorder)
            try:
                async for delta in receiver:
                    await take([delta, *_drain(receiver)])
            except Exception as error:  # raised inside the group it would come out wrapped
                failure = error
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _read(
        self,
        retriever: StreamingRetriever,
        question: str,
        deadline: float | None,
        sender: MemoryObjectSendStream[ContextDelta],
        recorder: Recorder,
    ) -> None:
        if deadline is not None:
            self._scope.deadline = anyio.current_time() + deadline - time.monotonic()
        documents: list[Document] = []
        async with sender:
            iterator: AsyncIterator[ContextDelta] | None = None
            try:
                with self._scope:
                    iterator = retriever.stream(question)
                    async for delta in iterator:
                        documents = [*documents, *delta.documents] if isinstance(delta, Append) else list(delta.documents)
                        self._report(delta, recorder)
                        await sender.send(delta)
            except Exception as error:
                self.error = error if isinstance(error, RetrievalError) else RetrievalError(f"the retriever failed: {error!r}")
                self.error.__cause__ = self.error.__cause__ or (None if error is self.error else error)
                self.error.documents = tuple(documents)
            self._end(recorder)
            if iterator is not None:
                await _close(iterator)

    def _end(self, recorder: Recorder) -> None:
        self.ended_at = time.monotonic()
        self.was_cut_short = self._scope.cancelled_caught
        if self.error is not None:
            recorder.record(EventKind.RETRIEVAL_FAILED, at=self.ended_at, detail=str(self.error))
        elif self.was_cut_short:
            recorder.record(EventKind.DEADLINE, at=self.ended_at)
        else:
            recorder.record(EventKind.RETRIEVAL_END, at=self.ended_at)

    def _report(self, delta: ContextDelta, recorder: Recorder) -> None:
        for event in delta.events:
            recorder.record_retrieval(event)
            if event.kind == "skip":
                self.skipped.append(event)


class _Feeder:
    """Puts deltas into the prompt, off the event loop, and tells the session what that changed."""

    def __init__(
        self, prompt: ContextPrompt, session: Session | None, limiter: anyio.CapacityLimiter, recorder: Recorder
    ) -> None:
        self._prompt = prompt
        self._session = session
        self._limiter = limiter
        self._recorder = recorder
        self._told = prompt.context_ids
        self.last_delta_tokens = 0
        recorder.record(EventKind.DELTA, label="prompt prefix", tokens=len(self._told))

    async def feed(self, deltas: Sequence[ContextDelta]) -> None:
        for delta in deltas:
            change = await anyio.to_thread.run_sync(self._prompt.apply, delta, limiter=self._limiter)
            if change is None:
                continue
            before, self._told = self._told, self._prompt.context_ids
            self.last_delta_tokens = len(self._told) - common_prefix(before, self._told)
            title = delta.documents[-1].title or delta.documents[-1].source if delta.documents else ""
            self._recorder.record(EventKind.DELTA, label=title, tokens=len(self._told) - len(before))
            if self._session is not None:
                send = self._session.append if change.kind == "append" else self._session.update
                await send(change.token_ids, num_remaining=delta.num_remaining)


def _drain(receiver: MemoryObjectReceiveStream[ContextDelta]) -> list[ContextDelta]:
    waiting = []
    while True:
        try:
            waiting.append(receiver.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return waiting


async def _close(iterator: AsyncIterator[ContextDelta]) -> None:
    """Let the retriever free what it holds, also when we are being cancelled; not longer than it may take."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
            await aclose()


def _with_max_tokens(sampling: Mapping[str, Any] | Any) -> Mapping[str, Any] | Any:
    if sampling is None or isinstance(sampling, Mapping):
        return {"max_tokens": DEFAULT_MAX_TOKENS, **(sampling or {})}
    return sampling


def _max_tokens(sampling: Mapping[str, Any] | Any) -> int:
    found = sampling.get("max_tokens") if isinstance(sampling, Mapping) else getattr(sampling, "max_tokens", None)
    return found if isinstance(found, int) and found > 0 else DEFAULT_MAX_TOKENS
