"""First come, first served, with a bound on waiting."""

from __future__ import annotations

from stream2llm_rag.engine.policy.base import LiveRequest, Rank
from stream2llm_rag.engine.policy.paper import Fcfs

DEFAULT_MAX_WAIT_S = 10.0


class AgedFcfs(Fcfs):
    """First come, first served in two tiers, until somebody has waited too long.

    A complete request that has not been answered ``max_wait_s`` seconds after its final context comes before all others, the
    longest waiting first: however many arrive, each is served at last.
    """

    def __init__(self, max_wait_s: float = DEFAULT_MAX_WAIT_S) -> None:
        self._max_wait_s = max_wait_s

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Those that have waited too long by their final context, then the others by tier and arrival."""
        if not request.partial and now - request.last_chunk_at > self._max_wait_s:
            return (-1.0, request.last_chunk_at)
        return super().rank(request, now)
