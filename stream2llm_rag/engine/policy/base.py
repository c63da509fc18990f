"""What a scheduling policy sees and says."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

Rank: TypeAlias = tuple[float, ...]


@dataclass(slots=True)
class LiveRequest:
    """One unfinished request, as policy and planner see it: plain numbers, as of the step that is being planned.

    Times are seconds of one clock. ``num_target`` is how many tokens may have KV by now: for a partial request all but the last
    (so that it cannot sample), for a complete one all. ``num_blocks`` are those in its block table, whoever shares them.
    ``may_evict`` says whether others may lose KV for it; one that may not sorts behind all that may, and takes what is free.
    ``num_remaining`` is how many more pieces the retriever expects, where it said so: a hint. A plain request is complete from
    its arrival on, which then is its last chunk too.
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
    may_evict: bool = True
    num_remaining: int | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that could be computed now."""
        return self.num_target - self.num_computed


class Policy(ABC):
    """Who comes first, and whose KV goes. It looks at values, touches nothing, and may learn from what it is told of.

    A policy of your own is a subclass, passed to the engine as ``module:Class``; it must have a constructor without parameters,
    and is made anew in each engine core. ``docs/policies.md`` is the page for its author.
    """

    skips_blocked: ClassVar[bool] = True
    """Whether the walk goes on past a request that does not fit (as in the paper), or waits for it."""

    evicts_tails: ClassVar[bool] = False
    """Whether a victim loses just the tail blocks that are needed, least :meth:`worth` first, or all its KV in reverse rank."""

    @abstractmethod
    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Sort key among requests with something to compute: smaller runs first. Those with nothing sort behind all of them."""

    def worth(self, request: LiveRequest, num_tokens: int, now: float) -> float:
        """What it is worth to hold the block that ends at token ``num_tokens`` of the request. Asked where tails are evicted.

        By default a complete request's blocks are worth most, and of the partial ones those of who came first.
        """
        return -request.arrived_at if request.partial else math.inf

    def saw_chunk(self, request_id: str, now: float, num_tokens: int, num_remaining: int | None) -> None:
        """Learn that a piece came for a partial request, which now has ``num_tokens``."""

    def saw_update(self, request_id: str, now: float, kept_share: float) -> None:
        """Learn that an update left the first ``kept_share`` of the request's tokens as they were."""

    def saw_final(self, request_id: str, now: float) -> None:
        """Learn that the final context came."""

    def saw_end(self, request_id: str) -> None:
        """Learn that the request is gone, answered or aborted."""
