"""What a scheduling policy sees and says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

Rank: TypeAlias = tuple[float, ...]


@dataclass(slots=True)
class LiveRequest:
    """One unfinished request, as policy and planner see it: plain numbers, refreshed by the scheduler before each step.

    Times are seconds of one clock. ``num_target`` is how many tokens may have KV by now: for a partial request all but the last
    (so that it cannot sample), for a complete one all. ``num_blocks`` are those in its block table, whoever shares them.
    """

    request_id: str
    arrived_at: float
    last_chunk_at: float
    partial: bool
    num_computed: int
    num_target: int
    num_blocks: int = 0
    holds_slot: bool = False
    evictable: bool = True
    num_remaining: int | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that could be computed now; negative only while a lookahead is counted."""
        return self.num_target - self.num_computed


class Policy(Protocol):
    """Who comes first. Pure: it looks at values and touches nothing."""

    def rank(self, request: LiveRequest) -> Rank:
        """Sort key: smaller runs first, larger is evicted first. Requests with nothing to compute sort behind all others."""
        ...
