"""Phase 1 of a step, pure: who runs, with how many tokens, and whose blocks go.

The walk of Stream2LLM section 4: requests in policy order, each takes tokens of the budget, blocks and a slot; when those run
out, others are evicted in reverse order. Unlike the paper's artifact the blocks that idle partial requests hold are part of the
sum, and nobody is evicted unless the request then fits. What else a policy may ask for is in its :class:`Rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

from stream2llm_rag.engine.ledger import BlockTable, Ledger
from stream2llm_rag.engine.policy.base import LiveRequest, Policy

# A tail that is cut goes in pieces: where worth depends on the position, that of what is left is asked for in between.
PIECE = 8


@dataclass(frozen=True, slots=True)
class Resources:
    """What one step may hand out.

    ``blocks`` and ``slots`` are free ones of ``pool_blocks`` in all; ``slots`` can be negative when requests hold more than the
    limit (which then shrinks first). ``num_lookahead_tokens`` are slots that vLLM allocates beyond the scheduled tokens.
    ``host_blocks`` are free ones in host memory.
    """

    token_budget: int
    blocks: int
    slots: int
    block_size: int
    num_lookahead_tokens: int = 0
    pool_blocks: int = 0
    host_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Victim:
    """A request that loses KV, and how many of its blocks, from the front, it keeps."""

    request_id: str
    num_kept_blocks: int = 0


@dataclass(slots=True)
class Plan:
    """What one step does, and what is left after it.

    ``grants`` are tokens to compute by request id, in policy order; ``victims`` stand in the order of eviction; ``refused`` are
    requests that were looked at and did not fit. ``defers_loads``: some were not looked at, as others load enough in this step.
    """

    grants: dict[str, int] = field(default_factory=dict)
    victims: list[Victim] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    num_free_blocks: int = 0
    num_free_slots: int = 0
    defers_loads: bool = False


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


@dataclass(slots=True)
class _Need:
    """What a request lacks for a number of tokens: blocks, some of which a prefix-cache hit may give it, and a slot."""

    request: LiveRequest
    num_tokens: int
    num_blocks: int
    hit: BlockTable

    @property
    def num_slots(self) -> int:
        return 0 if self.request.holds_slot else 1


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
        self._rules = policy.rules
        self._now = now
        self._order = self._sorted(active)
        self._idle = idle
        self._resources = resources
        self._hit = hit
        self._ledger = Ledger(table)
        self._blocks = resources.blocks
        self._slots = resources.slots
        self._host_blocks = resources.host_blocks
        self._num_reserved = int(policy.rules.reserved_share * resources.pool_blocks)
        self._plan = Plan()
        self._load_budget = resources.token_budget
        self._touched: dict[str, LiveRequest] = {}
        self._queue: list[LiveRequest] | None = None
        self._tails: list[tuple[float, int, int]] | None = None
        self._places: dict[str, int] = {}

    def run(self) -> Plan:
        budget = self._resources.token_budget
        partial_budget = self._partial_budget()
        for index, request in enumerate(self._order):
            if budget <= 0:
                break
            num_tokens = min(request.num_pending, budget, partial_budget if request.partial else budget)
            if num_tokens <= 0 or self._ledger.has_lost(request) or self._defers_load(request):
                continue
            num_granted = self._fit(index, request, num_tokens)
            if num_granted:
                self._plan.grants[request.request_id] = num_granted
                budget -= num_granted
                partial_budget -= num_granted if request.partial else 0
                self._load_budget -= request.num_loaded
                continue
            self._plan.refused.append(request.request_id)
            if not self._rules.skips_blocked:
                break
        return self._result()

    def _result(self) -> Plan:
        losers = [victim for victim in self._touched.values() if self._ledger.has_lost(victim)]
        self._plan.victims = [Victim(victim.request_id, self._ledger.num_kept(victim)) for victim in losers]
        self._plan.num_free_blocks, self._plan.num_free_slots = self._blocks, self._slots
        return self._plan

    def _partial_budget(self) -> int:
        """Tokens that the partial requests may have together."""
        # One pending token is a decode, or the last of a prompt that is computed already: it delays nobody.
        if self._rules.partials_wait and any(not request.partial and request.num_pending > 1 for request in self._order):
            return 0
        return min(self._resources.token_budget, self._rules.partial_budget or self._resources.token_budget)

    def _defers_load(self, request: LiveRequest) -> bool:
        """Put off what a partial request loads once others load: all wait for it, so a step loads as much as it may compute."""
        others_load = self._load_budget < self._resources.token_budget
        defers = request.partial and others_load and request.num_loaded > self._load_budget
        self._plan.defers_loads |= defers
        return defers

    # ------------------------------------------------------------------ what a request takes

    def _fit(self, index: int, request: LiveRequest, num_tokens: int) -> int:
        """Take blocks and a slot for the request, from the free ones, else from requests behind it.

        Returns for how many of ``num_tokens``: all, none, or where the rules say so as many as there are blocks for.
        """
        starts_behind_hit = not (request.holds_slot or self._takes_whole(request)) and num_tokens < request.num_pending
        need = self._need(request, num_tokens, self._hit(request.request_id) if starts_behind_hit else ())
        if need.num_blocks > self._spare_blocks(request) or need.num_slots > self._slots:
            if not request.holds_slot and not need.hit:
                need.hit = self._hit(request.request_id)
            if not self._make_room(index, need):
                return 0
        self._blocks -= need.num_blocks - self._ledger.num_held(need.hit)
        self._slots -= need.num_slots
        self._ledger.claim(need.hit)
        return need.num_tokens

    def _make_room(self, index: int, need: _Need) -> bool:
        """Evict for what is missing; else, where the rules say so, make do with less."""
        if not self._is_missing(need):
            return True
        kept_before = self._evict_for(index, need) if need.request.may_evict else {}
        if not self._is_missing(need):
            self._spare(kept_before, need)
            return True
        if self._rules.takes_part and self._shrink(need):
            return True
        for request_id, num_kept in kept_before.items():
            self._give_back(self._touched[request_id], num_kept)
        return False

    def _need(self, request: LiveRequest, num_tokens: int, hit: BlockTable) -> _Need:
        """Count the blocks to add: for a complete request at its admission those of its whole prompt.

        vLLM does the same (``scheduler_reserve_full_isl``): two half-computed prompts that fill the pool evict each other. Not
        so where a request takes what there is: then the first in order takes it from the others. One that is admitted chunk by
        chunk is computed from the end of its prefix-cache hit on.
        """
        start = max(request.num_computed, len(hit) * self._resources.block_size)
        end = request.num_target if self._takes_whole(request) else min(request.num_target, start + num_tokens)
        num_blocks = -(-(end + self._resources.num_lookahead_tokens) // self._resources.block_size)
        return _Need(request, num_tokens, max(0, num_blocks - request.num_blocks), hit)

    def _takes_whole(self, request: LiveRequest) -> bool:
        return not (request.partial or request.holds_slot or self._rules.takes_part)

    def _shrink(self, need: _Need) -> bool:
        """Reduce the need to the blocks that there are. False: they are not enough for one token."""
        if need.num_slots > self._slots:
            return False
        request, size = need.request, self._resources.block_size
        num_blocks = self._spare_blocks(request) + self._ledger.num_held(need.hit)
        start = max(request.num_computed, len(need.hit) * size)
        end = (request.num_blocks + num_blocks) * size - self._resources.num_lookahead_tokens
        need.num_tokens, need.num_blocks = min(need.num_tokens, end - start), num_blocks
        return need.num_tokens > 0 and num_blocks >= 0

    def _spare_blocks(self, request: LiveRequest) -> int:
        return self._blocks - (self._num_reserved if request.partial else 0)

    def _num_missing(self, need: _Need) -> int:
        # A block of the hit that somebody holds costs nothing; when its last holder lets go of it, it costs one again.
        return need.num_blocks - self._ledger.num_held(need.hit) - self._spare_blocks(need.request)

    def _is_missing(self, need: _Need) -> bool:
        return need.num_slots > self._slots or self._num_missing(need) > 0

    # ------------------------------------------------------------------ whose blocks go

    def _evict_for(self, index: int, need: _Need) -> dict[str, int]:
        """Evict, of those behind ``index``, until nothing is missing. Returns how many blocks each victim had before."""
        kept_before: dict[str, int] = {}
        for victim in self._tails_behind(index, need) if self._rules.evicts_tails else self._wholes_behind(index):
            num_kept = self._ledger.num_kept(victim)
            kept_before.setdefault(victim.request_id, num_kept)
            self._touched[victim.request_id] = victim
            num_cut = (
                min(max(PIECE, num_kept // PIECE), max(1, self._num_missing(need))) if self._rules.evicts_tails else num_kept
            )
            self._cut(victim, max(0, num_kept - num_cut))
            if not self._is_missing(need):
                break
        return kept_before

    def _wholes_behind(self, index: int) -> Iterator[LiveRequest]:
        """Victims in reverse order."""
        queue = self._whole_queue()
        return (queue[i] for i in range(len(queue) - 1, index, -1) if self._can_lose(queue[i]))

    def _tails_behind(self, index: int, need: _Need) -> Iterator[LiveRequest]:
        """Victims by the worth of their last block; the caller cuts each before it asks for the next."""
        queue, request = self._whole_queue(), need.request
        if self._tails is None:
            self._tails = [
                (self._worth(queue[i]), -i, queue[i].num_blocks)
                for i in range(index + 1, len(queue))
                if self._can_lose(queue[i])
            ]
            self._places = {request.request_id: i for i, request in enumerate(queue)}
            heapify(self._tails)
        limit = None
        if request.partial and self._rules.displaces is not None:
            limit = self._rules.displaces * self._policy.worth(request, request.num_computed + need.num_tokens, self._now)
        while self._tails and (limit is None or self._tails[0][0] < limit):
            worth, minus_i, num_kept = self._tails[0]
            victim = queue[-minus_i]
            if -minus_i <= index or num_kept != self._ledger.num_kept(victim):
                heappop(self._tails)  # it has had its turn, or stands there anew with what it has left
            elif worth < (worth_now := self._worth(victim)):
                # Others have taken its place in host memory. It stays dear for this step, should they get theirs back.
                heapreplace(self._tails, (worth_now, minus_i, num_kept))
            else:
                yield victim

    def _can_lose(self, victim: LiveRequest) -> bool:
        return victim.holds_slot and victim.evictable and self._ledger.num_kept(victim) > 0

    def _worth(self, victim: LiveRequest) -> float:
        """What the victim's last block is worth to it; less where losing it costs less, as host memory has room for it.

        It has while all blocks that the victim still holds fit. Without room two that are swapped would count too little to
        each other, and displace each other for ever.
        """
        num_kept = self._ledger.num_kept(victim)
        num_tokens = min(num_kept * self._resources.block_size, victim.num_computed)
        share = victim.loss_share if num_kept <= self._host_blocks else 1.0
        return share * self._policy.worth(victim, num_tokens, self._now)

    def _spare(self, kept_before: dict[str, int], need: _Need) -> None:
        """Give back what was taken in vain, since others share it or a later victim had enough; to the first in order first."""
        for request_id, num_before in reversed(kept_before.items()):
            victim = self._touched[request_id]
            while (num_kept := self._ledger.num_kept(victim)) < num_before:
                self._give_back(victim, num_kept + 1 if self._rules.evicts_tails else num_before)
                if self._is_missing(need):
                    self._cut(victim, num_kept)
                    break

    def _cut(self, victim: LiveRequest, num_kept: int) -> None:
        while self._ledger.num_kept(victim) > num_kept:
            self._blocks += self._ledger.cut(victim)
            self._host_blocks -= victim.loss_share < 1
        self._slots += num_kept == 0
        self._note_tail(victim)

    def _give_back(self, victim: LiveRequest, num_kept: int) -> None:
        self._slots -= self._ledger.num_kept(victim) == 0 and num_kept > 0
        while self._ledger.num_kept(victim) < num_kept:
            self._blocks -= self._ledger.give_back(victim)
            self._host_blocks += victim.loss_share < 1
        self._note_tail(victim)

    def _note_tail(self, victim: LiveRequest) -> None:
        if self._tails is not None and (num_kept := self._ledger.num_kept(victim)):
            heappush(self._tails, (self._worth(victim), -self._places[victim.request_id], num_kept))

    # ------------------------------------------------------------------ who comes first

    def _whole_queue(self) -> list[LiveRequest]:
        if self._queue is None:
            idle = list(self._idle())
            self._queue = [*self._order, *(idle if self._rules.evicts_tails else self._sorted(idle))]
        return self._queue

    def _sorted(self, requests: Iterable[LiveRequest]) -> list[LiveRequest]:
        return sorted(requests, key=self._key)

    def _key(self, request: LiveRequest) -> tuple[float, ...]:
        if not request.partial and self._now - request.last_chunk_at > self._rules.max_wait_s:
            return (-1.0, request.last_chunk_at)
        return (float(not request.may_evict), *self._policy.rank(request, self._now))
