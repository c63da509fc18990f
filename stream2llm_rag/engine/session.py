"""One streaming request: context goes in piece by piece, then a question, and tokens come out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from uuid import uuid4

import anyio
import numpy as np

from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.protocol import Op, OpKind
from stream2llm_rag.errors import InvalidInputError, LifecycleError, PromptTooLongError
from stream2llm_rag.shielding import run_shielded

if TYPE_CHECKING:
    from vllm import SamplingParams

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """Tokens that came together. ``finish_reason`` is set in the last one: ``stop``, ``length`` or ``abort``.

    ``kv_transfer_params``, in the last one too, is what vLLM's KV connector says of the request's KV, if there is a connector
    and the request's ``extra_args`` asked for it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    logprobs: Any = None
    kv_transfer_params: Mapping[str, Any] | None = None


@dataclass(slots=True)
class SessionStats:
    """What the engine core did for one stream so far.

    ``overlap_tokens`` are those of the final prompt that had been computed when the core learned that it is final, and were
    still held then; prefix-cache hits do not count. ``computed_tokens`` counts every token computed, those lost and computed
    again too. Others took KV in ``num_evictions``, of which ``num_swaps`` left it in host memory. ``waiting_s``: it had work,
    but no step took it; ``idle_s``: all that had come was computed.

    Where one engine prefills and another decodes: ``received_tokens`` of the final prompt came from the first to the second,
    which had cached or computed the others; ``handover_error`` says why none came, else it is None. The other figures are those
    of the prefill engine, and of a decode engine that was offered nothing.
    """

    computed_tokens: int = 0
    overlap_tokens: int = 0
    invalidated_tokens: int = 0
    num_evictions: int = 0
    num_swaps: int = 0
    evicted_tokens: int = 0
    waiting_s: float = 0.0
    idle_s: float = 0.0
    received_tokens: int = 0
    handover_error: str | None = None
    _steps: list[StepRecord] = field(default_factory=list)
    _final: StepRecord | None = None

    def overlap_at(self, at: float) -> int:
        """``overlap_tokens`` without those of steps that ended after ``at``, a time of :func:`time.monotonic`.

        The core learns of a finish only after the step that runs when it is sent, which may compute the last piece.
        """
        if self._final is None:
            return 0
        late = (s.num_tokens for s in self._steps if s.started_s < self._final.started_s and s.ended_s > at)
        return max(0, self._final.num_tokens - sum(late))

    def add(self, record: StepRecord) -> None:
        """Count one record of the core."""
        match record.kind:
            case StepKind.COMPUTED:
                self.computed_tokens += record.num_tokens
                self._steps.append(record)
            case StepKind.INVALIDATED:
                self.invalidated_tokens += record.num_tokens
            case StepKind.EVICTED:
                self.num_evictions += 1
                self.evicted_tokens += record.num_tokens
            case StepKind.SWAPPED:
                self.num_swaps += 1
            case StepKind.WAITED:
                self.waiting_s += record.ended_s - record.started_s
            case StepKind.IDLE:
                self.idle_s += record.ended_s - record.started_s
            case StepKind.RECEIVED:
                self.received_tokens = record.num_tokens
                if not record.num_tokens:
                    self.handover_error = "the decode engine could not load the KV"
            case StepKind.FINAL:
                self.overlap_tokens = record.num_tokens
                self._final = record


@dataclass(frozen=True, slots=True)
class Submission:
    """A prompt that is complete, and how to answer it.

    ``opens``: nothing of its session was sent before. ``arrival_time``: when it was finished, a time of :func:`time.time`.
    """

    token_ids: list[int]
    sampling: Mapping[str, Any] | SamplingParams
    opens: bool
    arrival_time: float


class Wire(Protocol):
    """What a session needs of its engine: a way to the engine core."""

    max_model_len: int
    vocab_size: int
    lifeline: Lifeline

    async def send(self, session: Session, op: Op, token_ids: list[int], arrival_time: float) -> None:
        """Send one operation of the session."""
        ...

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        """Send the finish and register for its outputs."""
        ...

    async def drop(self, session: Session, submitted: bool) -> None:
        """Free everything of the session, there and here."""
        ...


class Session:
    """One streaming request of an engine; made by ``engine.open()`` and used as an async context manager.

    The prompt grows by :meth:`append` or is replaced by :meth:`update`, as often as need be; :meth:`finish` adds the last piece
    and gives the answer. Leaving the block early aborts and frees everything. Calls of one session are carried out in the order
    in which they were made.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        on_close: Callable[[Session], None],
        on_record: Callable[[StepRecord], None] | None = None,
        cache_salt: str | None = None,
        lora_request: Any = None,
    ) -> None:
        self.request_id = f"s2l-{uuid4().hex}"
        self.cache_salt = cache_salt
        self.lora_request = lora_request
        self.stats = SessionStats()
        self._wire = wire
        self._on_close = on_close
        self._on_record = on_record
        self._tokens: list[int] = []
        self._opened = False
        self._submitted = False
        self._state = "open"
        self._turn = anyio.Lock()

    @property
    def num_tokens(self) -> int:
        """Length of the prompt as it stands, in tokens."""
        return len(self._tokens)

    def while_alive(self) -> AbstractContextManager[None]:
        """For a block that waits for something else between two calls: it ends when the engine does.

        ``with session.while_alive(): ...`` cancels the block when the engine dies and raises :class:`EngineDied`, or
        :class:`LifecycleError` when the engine is closed.
        """
        return self._wire.lifeline.held()

    async def start(self, prefix: TokenIds) -> Self:
        """Append the first piece. A session that cannot start is aborted before the error is raised."""
        try:
            await self.append(prefix)
        except BaseException:
            await self.abort()
            raise
        return self

    async def append(self, token_ids: TokenIds, *, num_remaining: int | None = None) -> None:
        """Put ``token_ids`` behind the prompt. ``num_remaining`` is how many more pieces are expected: a hint to the scheduler.

        Raises :class:`PromptTooLongError` if the prompt would not leave room for an answer, :class:`LifecycleError` after
        :meth:`finish` or :meth:`abort`. The session stays usable after the former.
        """
        async with self._turn:
            new = self._checked(token_ids, len(self._tokens))
            if new:
                await self._send(OpKind.APPEND, new, self._tokens + new, num_remaining)

    async def update(self, token_ids: TokenIds, *, num_remaining: int | None = None) -> None:
        """Replace the prompt by ``token_ids``; KV of the longest common prefix stays. Raises as :meth:`append`."""
        async with self._turn:
            new = self._checked(token_ids, 0)
            if not new:
                raise InvalidInputError("update() got no tokens. Pass the complete new prompt, at least one token.")
            if new != self._tokens:
                await self._send(OpKind.UPDATE, new, new, num_remaining)

    async def finish(
        self, suffix: TokenIds = (), sampling: Mapping[str, Any] | SamplingParams | None = None
    ) -> AsyncIterator[OutputDelta]:
        """Add ``suffix`` and answer. Returns an iterator over the output as it is generated.

        ``sampling`` holds vLLM's ``SamplingParams``, or its fields as a mapping. Raises as :meth:`append`, and
        :class:`InvalidInputError` if there is no prompt at all.
        """
        async with self._turn:
            tokens = self._tokens + self._checked(suffix, len(self._tokens))
            if not tokens:
                raise InvalidInputError("finish() came before any token. Append context, or pass the prompt as the suffix.")
            self._submitted = True  # from here on vLLM's output processor may know of it, also when the next line is cancelled
            outputs = await self._wire.submit(self, Submission(tokens, sampling or {}, not self._opened, time.time()))
            self._tokens = tokens
            if self._state == "open":
                self._state = "finished"
            return outputs

    async def abort(self) -> None:
        """Drop the request and free what it holds, also when cancelled meanwhile. Calling it again does nothing."""
        if self._state == "aborted":
            return
        self._state = "aborted"
        await run_shielded(self._drop())

    def take_record(self, record: StepRecord) -> None:
        """Take one record of the engine core."""
        self.stats.add(record)
        if self._on_record is not None:
            self._on_record(record)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.abort()

    async def _drop(self) -> None:
        try:
            async with self._turn:  # behind an operation that is being sent, which would else arrive after the abort
                await self._wire.drop(self, self._submitted)
        finally:
            self._on_close(self)

    async def _send(self, kind: OpKind, token_ids: list[int], whole: list[int], num_remaining: int | None) -> None:
        op = Op(kind, opens=not self._opened, num_remaining=num_remaining)
        self._opened = True
        await self._wire.send(self, op, token_ids, time.time())
        self._tokens = whole

    def _checked(self, token_ids: TokenIds, num_before: int) -> list[int]:
        if self._state != "open":
            raise LifecycleError(f"this session is {self._state}. Open another one with engine.open().")
        self._wire.lifeline.check()
        ids = np.asarray(token_ids)
        if ids.size == 0:
            return []
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise InvalidInputError(f"token ids must be a flat sequence of integers, got {ids.dtype} of shape {ids.shape}.")
        if ids.min() < 0 or ids.max() >= self._wire.vocab_size:
            raise InvalidInputError(
                f"token ids must be in [0, {self._wire.vocab_size}), got values from {ids.min()} to {ids.max()}. "
                "Were they made by another model's tokenizer?"
            )
        num_tokens = num_before + int(ids.size)
        if num_tokens >= self._wire.max_model_len:
            raise PromptTooLongError(
                f"the prompt would have {num_tokens} tokens, but the model's context of {self._wire.max_model_len} must hold "
                "it and at least one token of the answer. Append less, or open the engine with a larger max_model_len."
            )
        return [int(i) for i in ids]
