"""Phase 1 of a step, pure: who runs, with how many tokens, and whose blocks go.

The walk of Stream2LLM section 4: requests in policy order, each takes tokens of the budget, blocks and a slot; when those run
out, others are evicted in reverse order. Unlike the paper's artifact the blocks that idle partial requests hold are part of the
sum, and nobody is evicted unless the request then fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stream2llm_rag.engine.policy.base import LiveRequest, Policy


@dataclass(frozen=True, slots=True)
class Resources:
    """What one step may hand out.

    ``blocks`` and ``slots`` are free ones; ``slots`` can be negative when requests hold more than the limit (which then shrinks
    first). ``num_lookahead_tokens`` are slots that vLLM allocates beyond the scheduled tokens.
    """

    token_budget: int
    blocks: int
    slots: int
    block_size: int
    num_lookahead_tokens: int = 0


@dataclass(slots=True)
class Plan:
    """Tokens to compute by request id, in policy order; and the requests whose KV goes, in the order of eviction."""

    grants: dict[str, int] = field(default_factory=dict)
    victims: list[LiveRequest] = field(default_factory=list)


def plan(
    active: Iterable[LiveRequest],
    idle: Iterable[LiveRequest],
    resources: Resources,
    policy: Policy,
    reclaimable: Callable[[LiveRequest], int],
    shared: Callable[[LiveRequest], int],
) -> Plan:
    """Plan one step.

    ``active`` requests have tokens to compute, ``idle`` ones have none and are only looked at when memory or slots are short:
    they sort behind all active ones. ``reclaimable`` counts the blocks that evicting a request returns to the pool (those it
    shares do not); ``shared`` the blocks that a prefix-cache hit gives a waiting request without taking any from the pool. Both
    cost a walk over blocks and are asked only when a request does not fit otherwise.
    """
    return _Walk(active, idle, resources, policy, reclaimable, shared).run()


class _Walk:
    """One walk in policy order. Victims are taken from the far end, which only moves towards the request at hand."""

    def __init__(
        self,
        active: Iterable[LiveRequest],
        idle: Iterable[LiveRequest],
        resources: Resources,
        policy: Policy,
        reclaimable: Callable[[LiveRequest], int],
        shared: Callable[[LiveRequest], int],
    ) -> None:
        self._order = sorted(active, key=policy.rank)
        self._idle = idle
        self._policy = policy
        self._resources = resources
        self._reclaimable = reclaimable
        self._shared = shared
        self._blocks = resources.blocks
        self._slots = resources.slots
        self._plan = Plan()
        self._evicted: set[str] = set()
        self._queue: list[LiveRequest] | None = None
        self._tail = 0

    def run(self) -> Plan:
        budget = self._resources.token_budget
        for index, request in enumerate(self._order):
            if budget <= 0:
                break
            num_tokens = min(request.num_pending, budget)
            if num_tokens <= 0 or request.request_id in self._evicted:
                continue
            if self._fit(index, request, num_tokens):
                self._plan.grants[request.request_id] = num_tokens
                budget -= num_tokens
        return self._plan

    def _fit(self, index: int, request: LiveRequest, num_tokens: int) -> bool:
        """Take blocks and a slot for the request, from the free ones, else from requests behind it."""
        num_slots = 0 if request.holds_slot else 1
        num_blocks = self._blocks_needed(request, num_tokens)
        if num_blocks > self._blocks and not request.holds_slot:
            num_blocks -= self._shared(request)
        if not self._evict_for(index, num_blocks, num_slots):
            return False
        self._blocks -= num_blocks
        self._slots -= num_slots
        return True

    def _blocks_needed(self, request: LiveRequest, num_tokens: int) -> int:
        """A complete request is admitted only with room for its whole prompt, as vLLM does (``scheduler_reserve_full_isl``):
        two half-computed prompts that fill the pool would otherwise evict each other."""
        whole = not request.partial and not request.holds_slot
        end = request.num_target if whole else request.num_computed + num_tokens
        num_blocks = -(-(end + self._resources.num_lookahead_tokens) // self._resources.block_size)
        return max(0, num_blocks - request.num_blocks)

    def _evict_for(self, index: int, num_blocks: int, num_slots: int) -> bool:
        """Evict just as many as needed of those behind ``index``, last in order first; nobody when that is not enough."""
        blocks, slots, tail = self._blocks, self._slots, self._tail
        chosen: list[LiveRequest] = []
        while num_blocks > blocks or num_slots > slots:
            queue = self._whole_queue()
            tail = tail or len(queue)
            if tail - 1 <= index:
                return False
            tail -= 1
            victim = queue[tail]
            if victim.holds_slot and victim.evictable:
                chosen.append(victim)
                blocks += self._reclaimable(victim)
                slots += 1
        self._blocks, self._slots, self._tail = blocks, slots, tail
        self._plan.victims += chosen
        self._evicted.update(victim.request_id for victim in chosen)
        return True

    def _whole_queue(self) -> list[LiveRequest]:
        if self._queue is None:
            self._queue = [*self._order, *sorted(self._idle, key=self._policy.rank)]
        return self._queue
