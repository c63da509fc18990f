"""Phase 1 of a step, pure: who runs, with how many tokens, and whose blocks go.

The walk of Stream2LLM section 4: requests in policy order, each takes tokens of the budget, blocks and a slot; when those run
out, others are evicted in reverse order. Unlike the paper's artifact the blocks that idle partial requests hold are part of the
sum, and nobody is evicted unless the request then fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
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


@dataclass(frozen=True, slots=True)
class Victim:
    """A request that loses KV, and how many of its blocks, from the front, it keeps."""

    request_id: str
    num_kept_blocks: int = 0


@dataclass(slots=True)
class Plan:
    """Tokens to compute by request id, in policy order; whose KV goes, in the order of eviction; and what is left."""

    grants: dict[str, int] = field(default_factory=dict)
    victims: list[Victim] = field(default_factory=list)
    num_free_blocks: int = 0
    num_free_slots: int = 0


BlockTable: TypeAlias = Iterable[tuple[int, int]]
"""Blocks as (id, how many requests hold it)."""


def plan(
    active: Iterable[LiveRequest],
    idle: Callable[[], Iterable[LiveRequest]],
    resources: Resources,
    policy: Policy,
    now: float,
    table: Callable[[str], BlockTable],
    hit: Callable[[str], BlockTable],
) -> Plan:
    """Plan one step.

    ``active`` requests have tokens to compute, ``idle`` ones have none: they sort behind all active ones and are only asked for
    when blocks or slots are short. Then alone are ``table``, the blocks that a request holds, and ``hit``, the blocks that the
    prefix cache would give it, asked for, by request id.
    """
    return _Walk(active, idle, resources, policy, now, table, hit).run()


class _Ledger:
    """Counts what evictions return to the pool: a block comes back when the last request that holds it lets go of it."""

    def __init__(self, table: Callable[[str], BlockTable]) -> None:
        self._table = table
        self._kept: dict[str, list[tuple[int, int]]] = {}
        self._cut: dict[str, list[tuple[int, int]]] = {}
        self._released: dict[int, int] = {}

    def num_kept(self, request_id: str) -> int:
        """How many blocks the request still holds."""
        return len(self._blocks(request_id))

    def num_cut(self, request_id: str) -> int:
        """How many blocks were taken from the request."""
        return len(self._cut.get(request_id, ()))

    def cut(self, request_id: str) -> int:
        """Take the request's last block away. Returns how many blocks that frees: one, or none if others hold it."""
        block, num_holders = self._blocks(request_id).pop()
        self._cut.setdefault(request_id, []).append((block, num_holders))
        gone = self._released[block] = self._released.get(block, 0) + 1
        return int(gone == num_holders)

    def give_back(self, request_id: str) -> int:
        """Undo the last :meth:`cut`. Returns how many blocks are held again for it."""
        block, num_holders = self._cut[request_id].pop()
        self._blocks(request_id).append((block, num_holders))
        self._released[block] -= 1
        return int(self._released[block] == num_holders - 1)

    def num_held(self, blocks: Iterable[tuple[int, int]]) -> int:
        """How many of ``blocks`` somebody still holds."""
        return sum(num_holders > self._released.get(block, 0) for block, num_holders in blocks)

    def _blocks(self, request_id: str) -> list[tuple[int, int]]:
        if request_id not in self._kept:
            self._kept[request_id] = list(self._table(request_id))
        return self._kept[request_id]


class _Walk:
    """One walk in policy order. Victims are found among those behind the request at hand."""

    def __init__(
        self,
        active: Iterable[LiveRequest],
        idle: Callable[[], Iterable[LiveRequest]],
        resources: Resources,
        policy: Policy,
        now: float,
        table: Callable[[str], BlockTable],
        hit: Callable[[str], BlockTable],
    ) -> None:
        self._policy = policy
        self._now = now
        self._order = self._sorted(active)
        self._idle = idle
        self._resources = resources
        self._hit = hit
        self._ledger = _Ledger(table)
        self._blocks = resources.blocks
        self._slots = resources.slots
        self._grants: dict[str, int] = {}
        self._touched: dict[str, LiveRequest] = {}
        self._queue: list[LiveRequest] | None = None

    def run(self) -> Plan:
        budget = self._resources.token_budget
        for index, request in enumerate(self._order):
            if budget <= 0:
                break
            num_tokens = min(request.num_pending, budget)
            if num_tokens <= 0 or self._has_lost(request.request_id):
                continue
            if self._fit(index, request, num_tokens):
                self._grants[request.request_id] = num_tokens
                budget -= num_tokens
            elif not self._policy.skips_blocked:
                break
        victims = [Victim(name, self._ledger.num_kept(name)) for name in self._touched if self._has_lost(name)]
        return Plan(self._grants, victims, self._blocks, self._slots)

    def _fit(self, index: int, request: LiveRequest, num_tokens: int) -> bool:
        """Take blocks and a slot for the request, from the free ones, else from requests behind it."""
        num_slots = 0 if request.holds_slot else 1
        starts_behind_hit = request.partial and not request.holds_slot and num_tokens < request.num_pending
        hit = list(self._hit(request.request_id)) if starts_behind_hit else []
        num_blocks = self._blocks_needed(request, num_tokens, len(hit))
        if num_blocks <= self._blocks and num_slots <= self._slots:
            self._blocks -= num_blocks
            self._slots -= num_slots
            return True
        if not request.holds_slot and not hit:
            hit = list(self._hit(request.request_id))
        return self._fit_into_less(index, request, num_blocks, num_slots, hit)

    def _fit_into_less(self, index: int, request: LiveRequest, num_blocks: int, num_slots: int, hit: BlockTable) -> bool:

        def missing() -> bool:
            # A block of the hit that somebody holds costs nothing; when its last holder lets go of it, it costs one again.
            return num_blocks - self._ledger.num_held(hit) > self._blocks or num_slots > self._slots

        if missing() and not (request.may_evict and self._evict_for(index, missing)):
            return False
        self._blocks -= num_blocks - self._ledger.num_held(hit)
        self._slots -= num_slots
        return True

    def _blocks_needed(self, request: LiveRequest, num_tokens: int, num_hit_blocks: int) -> int:
        """Count the blocks to add: for a complete request at its admission those of its whole prompt.

        vLLM does the same (``scheduler_reserve_full_isl``): two half-computed prompts that fill the pool evict each other. A
        partial one is computed from the end of its prefix-cache hit on.
        """
        whole = not request.partial and not request.holds_slot
        start = request.num_computed + num_hit_blocks * self._resources.block_size
        end = request.num_target if whole else min(request.num_target, start + num_tokens)
        num_blocks = -(-(end + self._resources.num_lookahead_tokens) // self._resources.block_size)
        return max(0, num_blocks - request.num_blocks)

    def _evict_for(self, index: int, missing: Callable[[], bool]) -> bool:
        """Evict, of those behind ``index``, just as much as it takes; nothing when all of them are not enough."""
        kept_before: dict[str, int] = {}
        for victim in self._tails_behind(index) if self._policy.evicts_tails else self._wholes_behind(index):
            num_kept = self._ledger.num_kept(victim.request_id)
            kept_before.setdefault(victim.request_id, num_kept)
            self._cut(victim, num_kept - 1 if self._policy.evicts_tails else 0)
            self._touched[victim.request_id] = victim
            if not missing():
                self._spare(kept_before, missing)
                return True
        for request_id, num_kept in kept_before.items():
            self._give_back(request_id, num_kept)
        return False

    def _has_lost(self, request_id: str) -> bool:
        return request_id in self._touched and self._ledger.num_cut(request_id) > 0

    def _wholes_behind(self, index: int) -> Iterator[LiveRequest]:
        """Victims in reverse order."""
        queue = self._whole_queue()
        return (queue[i] for i in range(len(queue) - 1, index, -1) if self._can_lose(queue[i]))

    def _tails_behind(self, index: int) -> Iterator[LiveRequest]:
        """Victims by the worth of their last block, a block at a time; the caller cuts each before it asks for the next."""
        queue = self._whole_queue()
        heap = [(self._worth(queue[i]), -i) for i in range(index + 1, len(queue)) if self._can_lose(queue[i])]
        heapify(heap)
        while heap:
            victim = queue[-heap[0][1]]
            yield victim
            if self._can_lose(victim):
                heapreplace(heap, (self._worth(victim), heap[0][1]))
            else:
                heappop(heap)

    def _can_lose(self, victim: LiveRequest) -> bool:
        return victim.holds_slot and victim.evictable and self._ledger.num_kept(victim.request_id) > 0

    def _worth(self, victim: LiveRequest) -> float:
        num_tokens = self._ledger.num_kept(victim.request_id) * self._resources.block_size
        return self._policy.worth(victim, min(num_tokens, victim.num_computed), self._now)

    def _spare(self, kept_before: dict[str, int], missing: Callable[[], bool]) -> None:
        """Give back what was taken in vain, since others share it or a later victim had enough; to the first in order first."""
        for request_id, num_before in reversed(kept_before.items()):
            num_kept = self._ledger.num_kept(request_id)
            while num_kept < num_before:
                self._give_back(request_id, num_kept + 1 if self._policy.evicts_tails else num_before)
                if missing():
                    self._cut(self._touched[request_id], num_kept)
                    break
                num_kept = self._ledger.num_kept(request_id)

    def _cut(self, victim: LiveRequest, num_kept: int) -> None:
        while self._ledger.num_kept(victim.request_id) > num_kept:
            self._blocks += self._ledger.cut(victim.request_id)
        self._slots += num_kept == 0

    def _give_back(self, request_id: str, num_kept: int) -> None:
        self._slots -= self._ledger.num_kept(request_id) == 0 and num_kept > 0
        while self._ledger.num_kept(request_id) < num_kept:
            self._blocks -= self._ledger.give_back(request_id)

    def _whole_queue(self) -> list[LiveRequest]:
        if self._queue is None:
            self._queue = [*self._order, *self._sorted(self._idle())]
        return self._queue

    def _sorted(self, requests: Iterable[LiveRequest]) -> list[LiveRequest]:
        return sorted(requests, key=lambda request: (not request.may_evict, self._policy.rank(request, self._now)))
