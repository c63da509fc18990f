"""Put what a retriever brings into the prompt, and tell the engine."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from stream2llm_rag.documents import ContextDelta
from stream2llm_rag.engine.session import Session
from stream2llm_rag.prompt import ContextPrompt
from stream2llm_rag.timeline import EventKind, Recorder
from stream2llm_rag.token_ids import common_prefix


class Feeder:
    """Puts deltas into the prompt, off the event loop, and tells the session, where there is one, what that changed.

    ``last_delta_tokens`` are those from the first one on that the last delta changed.
    """

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
        """Take deltas in, in order; the session is told once what all of them come to."""
        unsent: list[int] = []
        is_update = False
        for delta in deltas:
            change = await anyio.to_thread.run_sync(self._prompt.apply, delta, limiter=self._limiter)
            if change is None:
                continue
            self._note(delta)
            is_update |= change.kind == "update"
            unsent += change.token_ids
        if self._session is not None and unsent:
            num_remaining = deltas[-1].num_remaining
            if is_update:
                await self._session.update(self._told, num_remaining=num_remaining)
            else:
                await self._session.append(unsent, num_remaining=num_remaining)

    def _note(self, delta: ContextDelta) -> None:
        before, self._told = self._told, self._prompt.context_ids
        num_common = common_prefix(before, self._told)
        self.last_delta_tokens = len(self._told) - num_common
        num_kept = None if num_common == len(before) else num_common
        title = delta.documents[-1].title or delta.documents[-1].source if delta.documents else ""
        self._recorder.record(EventKind.DELTA, label=title, tokens=len(self._told) - len(before), num_kept=num_kept)
