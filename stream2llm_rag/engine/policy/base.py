"""What a scheduling policy sees and says."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

Rank: TypeAlias = tuple[float, ...]


@dataclass(slots=True)
class LiveRequest:
    """One unfinished request, as policy and planner see it: plain numbers, as of the step that is being planned.

    Times are seconds of one clock. ``num_target`` is how many tokens may have KV by now: for a partial request all but the last
    (so that it cannot sample), for a complete one all. ``num_computed`` have KV when it runs: ``num_loaded`` of them come back
    from host memory on its admission, and have no blocks yet. ``num_blocks`` are those in its block table, whoever shares them.
    ``loss_share`` is what losing them costs, as a share of what computing them again does: less than 1 where they are swapped.
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
    num_loaded: int = 0
    loss_share: float = 1.0

    @property
    def num_pending(self) -> int:
        """Tokens that could be computed now."""
        return self.num_target - self.num_computed


@dataclass(frozen=True, slots=True)
class Rules:
    """How the planner works for a policy. As they are by default, it is as in the paper."""

    skips_blocked: bool = True
    """Whether the walk goes on past a request that does not fit, or waits for it."""

    max_wait_s: float = math.inf
    """A complete request that was not answered within so many seconds of its final context comes before all others, the longest
    waiting first: however many arrive, each is served at last."""

    evicts_tails: bool = False
    """Whether a victim loses just the tail blocks that are needed, least :meth:`Policy.worth` first, or all its KV in reverse
    rank."""

    takes_part: bool = False
    """Whether a request that does not fit gets what there is, or nothing."""

    displaces: float | None = None
    """A partial request takes only blocks that are worth less than so many times its own, whoever holds them, were it evicted
    itself before. None: those of all that rank behind it. For policies that evict tails."""

    reserved_share: float = 0.0
    """Share of the pool that partial requests leave free."""

    partial_budget: int | None = None
    """Tokens of a step that all partial requests together may have; None: all that are left."""

    partials_wait: bool = False
    """Whether partial requests run only in steps in which no complete one has prefill to do: such a step ends sooner."""


class Policy(ABC):
    """Who comes first, and whose KV goes. It looks at values, touches nothing, and may learn from what it is told of.

    A policy of your own is a subclass, passed to the engine as ``module:Class``; it must have a constructor without parameters,
    and is made anew in each engine core. ``docs/policies.md`` is the page for its author.
    """

    rules: Rules = Rules()

    @abstractmethod
    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Sort key among requests with something to compute: smaller runs first. Those with nothing sort behind all of them."""

    def worth(self, request: LiveRequest, num_tokens: int, now: float) -> float:
        """What it is worth to hold the block that ends at token ``num_tokens`` of the request. For policies that evict tails.

        By default a complete request's blocks are worth most, and of the partial ones those of who came first.
        """
        return -request.arrived_at if request.partial else math.inf

    def saw_chunk(self, request_id: str, now: float, num_tokens: int, num_remaining: int | None) -> None:
        """Learn that a piece came for a partial request, which now has ``num_tokens``."""

    def saw_update(self, request_id: str, now: float, kept_share: float) -> None:
        """Learn that an update left the first ``kept_share`` of the request's tokens as they were."""

    def saw_final(self, request_id: str, now: float) -> None:
        """Learn that the final context came."""

    def saw_step(self, num_tokens: int, duration_s: float) -> None:
        """Learn that a step computed ``num_tokens`` in ``duration_s`` seconds."""

    def saw_end(self, request_id: str) -> None:
        """Learn that the request is gone, answered or aborted."""
