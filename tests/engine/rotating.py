"""A policy that is another one every few steps: whatever is true under it is true under changes of regime too."""

from __future__ import annotations

from dataclasses import replace

from stream2llm_rag.engine.policy import POLICIES, LiveRequest, Policy, Rank, Rules

STEPS_EACH = 7


class Rotating(Policy):
    """Each of the library's policies in turn. A step asks for many ranks with one ``now``; that is how steps are told apart."""

    def __init__(self) -> None:
        self._policies = [make() for make in POLICIES.values()]
        self._num_steps = 0
        self._now = 0.0

    @property
    def rules(self) -> Rules:  # type: ignore[override]
        return replace(self._current.rules, skips_blocked=self._num_steps % 3 != 0)

    def rank(self, request: LiveRequest, now: float) -> Rank:
        if now != self._now:
            self._now = now
            self._num_steps += 1
        return self._current.rank(request, now)

    def worth(self, request: LiveRequest, num_tokens: int, now: float) -> float:
        return self._current.worth(request, num_tokens, now)

    @property
    def _current(self) -> Policy:
        return self._policies[self._num_steps // STEPS_EACH % len(self._policies)]
