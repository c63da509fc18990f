"""Phase 1 of a step, pure: who runs, with how many tokens, and whose blocks go.

The walk of Stream2LLM section 4: requests in policy order, each takes tokens of the budget, blocks and a slot; when those run
out, others are evicted in reverse order. Unlike the paper's artifact the blocks that idle partial requests hold are part of the
sum, and nobody is evicted unless the request then fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

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


BlockTable: TypeAlias = Iterable[tuple[int, int]]
"""Blocks as (id, how many requests hold it)."""


def plan(
    active: Iterable[LiveRequest],
    idle: Iterable[LiveRequest],
    resources: Resources,
    policy: Policy,
    table: Callable[[str], BlockTable],
    hit: Callable[[str], BlockTable],
) -> Plan:
    """Plan one step.

    ``active`` requests have tokens to compute, ``idle`` ones have none: they sort behind all active ones and are only looked at
    when blocks or slots are short. Then alone are ``table``, the blocks that a request holds, and ``hit``, the blocks that the
    prefix cache would give it, asked for, by request id.
    """
    return _Walk(active, idle, resources, policy, table, hit).run()


class _Ledger:
    """Counts what evictions return to the pool: a block comes back when the last request that holds it is gone."""

    def __init__(self, table: Callable[[str], BlockTable]) -> None:
        self._table = table
        self._released: dict[int, int] = {}

    def release(self, request_id: str) -> int:
        """Let the request go. Returns how many blocks that frees, given who else went before."""
        num_freed = 0
        for block, num_holders in self._table(request_id):
            gone = self._released[block] = self._released.get(block, 0) + 1
            num_freed += gone == num_holders
        return num_freed

    def restore(self, request_id: str) -> int:
        """Undo :meth:`release`. Returns how many blocks are held again for it."""
        num_held = 0
        for block, num_holders in self._table(request_id):
            num_held += self._released[block] == num_holders
            self._released[block] -= 1
        return num_held

    def num_held(self, blocks: BlockTable) -> int:
        """How many of ``blocks`` somebody still holds."""
        return sum(num_holders > self._released.get(block, 0) for block, num_holders in blocks)


class _Walk:
    """One walk in policy order. Victims are taken from the far end, which only moves towards the request at hand."""

    def __init__(
        self,
        active: Iterable[LiveRequest],
        idle: Iterable[LiveRequest],
        resources: Resources,
        policy: Policy,
        table: Callable[[str], BlockTable],
        hit: Callable[[str], BlockTable],
    ) -> None:
        self._order = sorted(active, key=policy.rank)
        self._idle = idle
        self._policy = policy
        self._resources = resources
        self._hit = hit
        self._ledger = _Ledger(table)
        self._blocks = resources.blocks
        self._slots = resources.slots
        self._plan = Plan()
        self._evicted: set[str] = set()
        self._queue: list[LiveRequest] | None = None
        self._tail: int | None = None

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
        hit: list[tuple[int, int]] = []
        if num_blocks > self._blocks and not request.holds_slot:
            hit = list(self._hit(request.request_id))
        if not self._evict_for(index, num_blocks, num_slots, hit):
            return False
        self._blocks -= num_blocks - self._ledger.num_held(hit)
        self._slots -= num_slots
        return True

    def _blocks_needed(self, request: LiveRequest, num_tokens: int) -> int:
        """Count the blocks to add: for a complete request at its admission those of its whole prompt.

        vLLM does the same (``scheduler_reserve_full_isl``): two half-computed prompts that fill the pool evict each other.
        """
        whole = not request.partial and not request.holds_slot
        end = request.num_target if whole else request.num_computed + num_tokens
        num_blocks = -(-(end + self._resources.num_lookahead_tokens) // self._resources.block_size)
        return max(0, num_blocks - request.num_blocks)

    def _evict_for(self, index: int, num_blocks: int, num_slots: int, hit: BlockTable) -> bool:
        """Evict, of those behind ``index`` and last in order first, as many as it takes; nobody when all are not enough."""

        def missing() -> bool:
            # A block of the hit that somebody holds costs nothing; when its last holder is evicted it costs one again.
            return num_blocks - self._ledger.num_held(hit) > self._blocks or num_slots > self._slots

        queue_end = self._tail
        chosen: list[LiveRequest] = []
        while missing():
            queue = self._whole_queue()
            queue_end = len(queue) if queue_end is None else queue_end
            if queue_end - 1 <= index:
                self._take_back(chosen)
                return False
            queue_end -= 1
            victim = queue[queue_end]
            if victim.holds_slot and victim.evictable and victim.request_id not in self._evicted:
                chosen.append(victim)
                self._let_go(victim)
        self._tail = queue_end
        for victim in chosen[-2::-1]:  # one whose blocks others share, or that a later one made needless, is spared
            self._take_back([victim])
            if missing():
                self._let_go(victim)
            else:
                chosen.remove(victim)
        self._plan.victims += chosen
        self._evicted.update(victim.request_id for victim in chosen)
        return True

    def _let_go(self, victim: LiveRequest) -> None:
        self._blocks += self._ledger.release(victim.request_id)
        self._slots += 1

    def _take_back(self, victims: Iterable[LiveRequest]) -> None:
        for victim in victims:
            self._blocks -= self._ledger.restore(victim.request_id)
            self._slots -= 1

    def _whole_queue(self) -> list[LiveRequest]:
        if self._queue is None:
            self._queue = [*self._order, *sorted(self._idle, key=self._policy.rank)]
        return self._queue
