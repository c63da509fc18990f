from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.ledger import BlockTable
from stream2llm_rag.engine.planner import Plan, Resources, Victim, plan
from stream2llm_rag.engine.policy import LiveRequest, Policy, Rules
from stream2llm_rag.engine.policy.paper import Fcfs, TailFcfs

BLOCK = 16


class TakesPart(Fcfs):
    rules = Rules(takes_part=True)


@dataclass
class HeldBlock:
    block_id: int
    ref_cnt: int


class World:
    """Requests, and who holds which block."""

    def __init__(self, *requests: LiveRequest, tables: dict[str, list[int]] | None = None) -> None:
        self.requests = {request.request_id: request for request in requests}
        names = iter(range(10**6))
        self.tables = tables or {r.request_id: [next(names) for _ in range(r.num_blocks)] for r in requests}
        self.hits: dict[str, list[int]] = {}

    def holders(self, block: int) -> int:
        return sum(block in table for table in self.tables.values())

    def table(self, request_id: str) -> BlockTable:
        return self._held(self.tables.get(request_id, ()))

    def hit(self, request_id: str) -> BlockTable:
        return self._held(self.hits.get(request_id, ()))

    def _held(self, blocks: Iterable[int]) -> BlockTable:
        return [HeldBlock(block, self.holders(block)) for block in blocks]

    def plan(
        self, policy: Policy | None = None, *, budget: int = 10**6, blocks: int = 0, slots: int = 10, lookahead: int = 0
    ) -> Plan:
        active = [r for r in self.requests.values() if r.num_pending > 0]
        idle = [r for r in self.requests.values() if r.num_pending <= 0]
        resources = Resources(budget, blocks, slots, BLOCK, lookahead, pool_blocks=20)
        return plan(active, lambda: idle, resources, policy or Fcfs(), 100.0, self.table, self.hit)


def request(
    name: str, arrived_at: float, computed: int, target: int, *, partial: bool = True, **changes: object
) -> LiveRequest:
    held = -(-computed // BLOCK)
    made = LiveRequest(name, arrived_at, arrived_at, partial, computed, target, held, holds_slot=computed > 0)
    return replace(made, **changes)  # type: ignore[arg-type]


def names(victims: list[Victim]) -> list[str]:
    return [victim.request_id for victim in victims]


def test_complete_requests_come_before_partial_ones_and_earlier_before_later() -> None:
    world = World(
        request("late", 3, 0, 16),
        request("early", 1, 0, 16),
        request("complete", 9, 0, 16, partial=False),
    )
    assert list(world.plan(blocks=9).grants) == ["complete", "early", "late"]


def test_what_comes_back_from_host_memory_takes_blocks_but_no_budget() -> None:
    """Of 100 tokens 80 wait there: it needs blocks for all, or stays where it is."""
    returning = request("a", 1, 80, 100, partial=False, num_blocks=0, holds_slot=False)
    assert World(returning).plan(budget=30, blocks=7).grants == {"a": 20}
    assert World(returning).plan(budget=30, blocks=6).grants == {}
    assert World(returning).plan(TakesPart(), budget=30, blocks=6).grants == {"a": 16}
    assert World(returning).plan(TakesPart(), budget=30, blocks=5).grants == {}


def test_partial_requests_load_in_a_step_as_much_as_it_may_compute() -> None:
    def returning(name: str, arrived_at: float, *, partial: bool = True) -> LiveRequest:
        return request(name, arrived_at, 80, 82, partial=partial, num_blocks=0, holds_slot=False, num_loaded=80)

    world = World(returning("a", 1), returning("b", 2), returning("c", 3), request("d", 4, 16, 18))
    made = world.plan(budget=100, blocks=99)
    assert list(made.grants) == ["a", "d"]
    assert made.defers_loads
    assert list(world.plan(budget=160, blocks=99).grants) == ["a", "b", "d"]
    assert list(World(returning("a", 1), returning("b", 2)).plan(budget=50, blocks=99).grants) == ["a"]
    complete = World(*(returning(name, 1, partial=False) for name in "abc"))
    assert list(complete.plan(budget=100, blocks=99).grants) == ["a", "b", "c"]


def test_what_the_prefix_cache_has_of_it_is_not_counted_twice() -> None:
    returning = request("a", 1, 80, 100, num_blocks=0, holds_slot=False)
    holder = request("b", 0, 48, 48)
    world = World(returning, holder)
    world.hits["a"] = world.tables["b"]
    assert world.plan(blocks=4).grants == {"a": 20}


def test_the_budget_is_spent_in_order() -> None:
    world = World(request("a", 1, 0, 100), request("b", 2, 0, 100), request("c", 3, 0, 100))
    assert world.plan(budget=150, blocks=99).grants == {"a": 100, "b": 50}


def test_a_request_that_does_not_fit_is_left_out_and_the_walk_goes_on() -> None:
    world = World(request("large", 1, 0, 160), request("small", 2, 0, 16))
    assert world.plan(blocks=2).grants == {"small": 16}


def test_idle_requests_are_evicted_first_and_the_latest_of_them() -> None:
    world = World(
        request("idle-1", 1, 32, 32), request("idle-2", 2, 32, 32), request("idle-3", 3, 32, 32), request("new", 4, 0, 48)
    )
    made = world.plan()
    assert names(made.victims) == ["idle-3", "idle-2"]
    assert made.grants == {"new": 48}


def test_nobody_is_evicted_for_a_request_that_would_not_fit_all_the_same() -> None:
    world = World(request("idle", 1, 32, 32), request("huge", 2, 0, 320))
    made = world.plan(blocks=1)
    assert not made.victims
    assert not made.grants


def test_an_earlier_request_is_not_evicted_for_a_later_one_of_its_tier() -> None:
    world = World(request("early", 1, 32, 64), request("late", 2, 0, 48))
    made = world.plan(blocks=1)
    assert names(made.victims) == []
    assert made.grants == {}  # the early one lacks a block too, and nobody stands behind the late one


def test_a_victim_whose_blocks_others_share_is_spared() -> None:
    world = World(
        request("shares", 3, 32, 32), request("owns", 2, 32, 32), request("keeper", 1, 32, 33), request("new", 4, 0, 16)
    )
    world.tables = {"shares": [1, 2], "owns": [3, 4], "keeper": [1, 2]}
    assert names(world.plan().victims) == ["owns"]


def test_blocks_that_only_victims_share_come_back_when_all_of_them_go() -> None:
    world = World(request("a", 1, 32, 32), request("b", 2, 32, 32), request("new", 3, 0, 32, partial=False))
    world.tables = {"a": [1, 2], "b": [1, 2]}
    made = world.plan()
    assert sorted(names(made.victims)) == ["a", "b"]
    assert made.grants == {"new": 32}


def test_a_prefix_hit_that_somebody_holds_costs_no_blocks() -> None:
    world = World(request("keeper", 1, 32, 33), request("new", 2, 0, 48))
    world.hits["new"] = world.tables["keeper"]
    made = world.plan(blocks=2)
    assert made.grants == {"keeper": 1, "new": 48}
    assert not made.victims


def test_a_prefix_hit_that_only_a_victim_holds_costs_its_blocks_again() -> None:
    world = World(request("idle", 1, 32, 32), request("new", 2, 0, 64))
    world.hits["new"] = world.tables["idle"]
    made = world.plan(blocks=1)
    assert not made.grants  # 4 blocks wanted: 1 free and 2 of the victim's, which are also the hit's
    assert not made.victims


def test_a_tail_is_cut_no_further_than_needed() -> None:
    world = World(request("idle-1", 1, 64, 64), request("idle-2", 2, 64, 64), request("new", 3, 0, 48))
    made = world.plan(TailFcfs(), blocks=1)
    assert made.victims == [Victim("idle-2", num_kept_blocks=2)]
    assert made.grants == {"new": 48}


def test_tails_are_cut_from_the_least_worthy_on() -> None:
    world = World(request("idle-1", 1, 32, 32), request("idle-2", 2, 32, 32), request("new", 3, 0, 48))
    assert world.plan(TailFcfs()).victims == [Victim("idle-2", 0), Victim("idle-1", 1)]


def test_shared_blocks_of_a_tail_are_not_cut_in_vain() -> None:
    world = World(
        request("shares", 3, 48, 48), request("owns", 2, 64, 64), request("keeper", 1, 48, 48), request("new", 4, 0, 16)
    )
    world.tables = {"shares": [1, 2, 3], "owns": [5, 6, 7, 8], "keeper": [1, 2, 3]}
    assert world.plan(TailFcfs()).victims == [Victim("owns", 3)]


def test_a_policy_may_wait_for_a_request_that_does_not_fit() -> None:
    class Patient(Fcfs):
        rules = Rules(skips_blocked=False)

    world = World(request("large", 1, 0, 160), request("small", 2, 0, 16))
    assert world.plan(Patient(), blocks=2).grants == {}


def test_a_slot_is_worth_an_eviction() -> None:
    world = World(request("idle", 1, 16, 16), request("new", 2, 0, 16))
    made = world.plan(blocks=50, slots=0)
    assert names(made.victims) == ["idle"]
    assert made.grants == {"new": 16}


def test_what_cannot_be_evicted_now_is_left_alone() -> None:
    world = World(request("fenced", 1, 32, 32, evictable=False), request("new", 2, 0, 16))
    assert not world.plan().victims


def test_a_complete_request_is_admitted_with_room_for_its_whole_prompt() -> None:
    world = World(request("complete", 1, 0, 160, partial=False))
    assert not world.plan(budget=16, blocks=9).grants
    assert world.plan(budget=16, blocks=10).grants == {"complete": 16}


class Ruled(Fcfs):
    """First come, first served by any rules, with blocks whose worth depends on where they stand."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def worth(self, request: LiveRequest, num_tokens: int, now: float) -> float:
        return 1.0 / (1 + num_tokens + request.arrived_at) if request.partial else math.inf


@st.composite
def any_rules(draw: st.DrawFn) -> Rules:
    return Rules(
        skips_blocked=draw(st.booleans()),
        max_wait_s=draw(st.sampled_from([0.0, math.inf])),
        evicts_tails=draw(st.booleans()),
        takes_part=draw(st.booleans()),
        displaces=draw(st.sampled_from([None, 0.5, 2.0])),
        reserved_share=draw(st.sampled_from([0.0, 0.1])),
        partial_budget=draw(st.sampled_from([None, 20])),
        partials_wait=draw(st.booleans()),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    requests = []
    for index in range(draw(st.integers(1, 12))):
        computed = draw(st.sampled_from([0, 0, 5, 16, 40, 64]))
        pending = draw(st.sampled_from([0, 0, 1, 16, 50]))
        requests.append(
            request(
                f"r{index}",
                draw(st.integers(0, 5)),
                computed,
                computed + pending,
                partial=draw(st.booleans()),
                evictable=draw(st.integers(0, 5)) > 0,
            )
        )
    tables = {
        r.request_id: draw(st.lists(st.integers(0, 20), min_size=r.num_blocks, max_size=r.num_blocks, unique=True))
        for r in requests
    }
    world = World(*requests, tables=tables)
    for one in requests:
        if not one.holds_slot:
            longest = draw(st.sampled_from(list(tables.values())))
            world.hits[one.request_id] = longest[: min(len(longest), one.num_pending // BLOCK)]
    return world


@given(worlds(), any_rules(), st.integers(0, 200), st.integers(0, 12), st.integers(-2, 4), st.integers(0, 3))
def test_a_plan_keeps_to_what_there_is(
    world: World, rules: Rules, budget: int, blocks: int, slots: int, lookahead: int
) -> None:
    made = world.plan(Ruled(rules), budget=budget, blocks=blocks, slots=slots, lookahead=lookahead)
    victims = set(names(made.victims))
    assert len(victims) == len(made.victims)
    assert sum(made.grants.values()) <= budget
    assert not victims & set(made.grants)
    assert all(world.requests[v].evictable and world.requests[v].holds_slot for v in victims)
    for name, num_tokens in made.grants.items():
        assert 0 < num_tokens <= world.requests[name].num_pending
    before = {block for table in world.tables.values() for block in table}
    num_kept = {victim.request_id: victim.num_kept_blocks for victim in made.victims}
    kept = {block for name, table in world.tables.items() for block in table[: num_kept.get(name)]}
    free_blocks = blocks + len(before) - len(kept)
    needed = 0
    reused: set[int] = set()  # a block of several hits is taken from the pool once
    for name, num_tokens in made.grants.items():
        one, hit = world.requests[name], world.hits.get(name, [])
        end = min(one.num_target, one.num_computed + len(hit) * BLOCK + num_tokens)
        needed += max(0, -(-(end + lookahead) // BLOCK) - one.num_blocks - len(hit))
        reused |= set(hit) - kept
    needed += len(reused)
    assert needed <= free_blocks
    assert made.num_free_blocks <= free_blocks - needed or not made.grants
    partial_tokens = sum(n for name, n in made.grants.items() if world.requests[name].partial)
    assert rules.partial_budget is None or partial_tokens <= rules.partial_budget
    if made.grants:
        new_slots = sum(not world.requests[name].holds_slot for name in made.grants)
        assert new_slots <= max(0, slots + sum(num_kept == 0 for num_kept in num_kept.values()))


@given(worlds(), st.integers(0, 12), st.integers(-1, 2))
def test_no_victim_of_a_single_request_could_have_been_spared(world: World, blocks: int, slots: int) -> None:
    for other in list(world.requests.values())[1:]:
        world.requests[other.request_id] = replace(other, num_target=other.num_computed)
    made = world.plan(blocks=blocks, slots=slots)
    for spared in names(made.victims):
        request = world.requests[spared]
        world.requests[spared] = replace(request, evictable=False)
        again = world.plan(blocks=blocks, slots=slots)
        world.requests[spared] = request
        assert again.grants != made.grants or not set(names(again.victims)) < set(names(made.victims))
