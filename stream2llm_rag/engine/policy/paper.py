"""The policies of Stream2LLM, as the paper and its artifact define them (section 4)."""

from __future__ import annotations

from stream2llm_rag.engine.policy.base import LiveRequest, Policy, Rank, Rules


class Fifo(Policy):
    """Arrival order, as vLLM's default; the last is evicted first."""

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Arrival."""
        return (request.arrived_at,)


class Fcfs(Policy):
    """First come, first served, in two tiers: complete requests before partial ones.

    Only complete requests can yield a token, and their memory returns to the pool soonest.
    """

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Tier, then arrival."""
        return (float(request.partial), request.arrived_at)


class TailFcfs(Fcfs):
    """As :class:`Fcfs`, but a victim loses just as many tail blocks as are needed and goes on from there."""

    rules = Rules(evicts_tails=True)


class Lcas(Policy):
    """Last chunk arrival, oldest first, in two tiers: whoever has waited longest with what it has."""

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Tier, then arrival of the last chunk."""
        return (float(request.partial), request.last_chunk_at)


class Mcps(Policy):
    """Most computed prefix first, without tiers: whoever has the least left to lose comes last."""

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Computed tokens, most first; then arrival."""
        return (-float(request.num_computed), request.arrived_at)
