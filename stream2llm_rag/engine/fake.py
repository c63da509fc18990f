"""A stand-in for the engine: no model, no vLLM, the same sessions. For tests of what is built on an engine."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.lowlevel

from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.protocol import Op
from stream2llm_rag.engine.session import OutputDelta, Session, Submission, TokenIds
from stream2llm_rag.errors import CapacityError


class FakeEngine:
    """Answers ``num_answer_tokens`` tokens that depend on every token of the prompt, as greedy ones would.

    It computes instantly: a partial prompt up to its last token but one as soon as it is told of it. ``sessions`` are those
    open now, ``prompts`` the final ones that were answered, in order. ``lifeline.die()`` is the death of its processes.
    """

    def __init__(
        self, tokenizer: Any, *, max_model_len: int = 8192, max_sessions: int = 1024, num_answer_tokens: int = 8
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.vocab_size = len(tokenizer)
        self.lifeline = Lifeline()
        self.sessions: set[Session] = set()
        self.prompts: list[list[int]] = []
        self._max_sessions = max_sessions
        self._num_answer_tokens = num_answer_tokens

    async def open(
        self,
        prefix: TokenIds = (),
        *,
        on_record: Callable[[StepRecord], None] | None = None,
        cache_salt: str | None = None,
    ) -> Session:
        """As ``Stream2LLMEngine.open``."""
        self.lifeline.check()
        if len(self.sessions) >= self._max_sessions:
            raise CapacityError(f"{len(self.sessions)} sessions are open, the limit is max_sessions={self._max_sessions}.")
        session = Session(self, on_close=self.sessions.discard, on_record=on_record, cache_salt=cache_salt)
        self.sessions.add(session)
        return await session.start(prefix)

    async def send(self, session: Session, op: Op, token_ids: list[int], arrival_time: float) -> None:
        """Compute what came."""
        await anyio.lowlevel.checkpoint()
        session.take_record(StepRecord(session.request_id, StepKind.COMPUTED, *_instant(), len(token_ids)))

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        """Answer."""
        await anyio.lowlevel.checkpoint()
        overlap = 0 if submission.opens else max(0, session.num_tokens - 1)
        session.take_record(StepRecord(session.request_id, StepKind.FINAL, *_instant(), overlap))
        self.prompts.append(submission.token_ids)
        return self._answer(submission.token_ids)

    async def drop(self, session: Session, submitted: bool) -> None:
        """Nothing is held."""
        await anyio.lowlevel.checkpoint()

    async def _answer(self, token_ids: list[int]) -> AsyncIterator[OutputDelta]:
        digest = hashlib.sha256(",".join(map(str, token_ids)).encode()).digest()
        for index in range(self._num_answer_tokens):
            with self.lifeline.held():
                await anyio.lowlevel.checkpoint()
            token = digest[index % len(digest)] % self.vocab_size
            is_last = index == self._num_answer_tokens - 1
            yield OutputDelta(self.tokenizer.decode([token]), (token,), "length" if is_last else None)


def _instant() -> tuple[float, float]:
    now = anyio.current_time()
    return now, now
