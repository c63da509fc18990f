"""First come, first served, in two tiers (Stream2LLM section 4: FCFS)."""

from __future__ import annotations

from stream2llm_rag.engine.policy.base import LiveRequest, Rank


class Fcfs:
    """Complete requests before partial ones; inside a tier by the arrival of the request.

    Complete requests come first because only they can yield a token, and because their memory returns to the pool soonest.
    """

    def rank(self, request: LiveRequest) -> Rank:
        """Tier, then arrival."""
        return (float(request.partial), request.arrived_at)
