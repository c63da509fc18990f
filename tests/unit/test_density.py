from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.ledger import BlockTable
from stream2llm_rag.engine.planner import Plan, Resources, Victim, plan
from stream2llm_rag.engine.policy import LiveRequest
from stream2llm_rag.engine.policy.density import Density
from stream2llm_rag.engine.policy.learning import NUM_KEPT, StreamingTimes, Survival, TokenTime

BLOCK = 16


class Held:
    def __init__(self, block_id: int) -> None:
        self.block_id, self.ref_cnt = block_id, 1


def partial(name: str, computed: int, target: int, *, blocks: int | None = None) -> LiveRequest:
    held = -(-computed // BLOCK) if blocks is None else blocks
    return LiveRequest(name, 0.0, 0.0, True, computed, target, held, holds_slot=computed > 0)


def complete(name: str, computed: int, target: int, last_chunk_at: float = 0.0) -> LiveRequest:
    return LiveRequest(name, 0.0, last_chunk_at, False, computed, target, -(-computed // BLOCK), holds_slot=computed > 0)


def made(
    policy: Density,
    *requests: LiveRequest,
    blocks: int,
    now: float = 10.0,
    budget: int = 8192,
    pool: int = 0,
    host: int = 0,
) -> Plan:
    tables: dict[str, BlockTable] = {
        r.request_id: [Held(1000 * i + n) for n in range(r.num_blocks)] for i, r in enumerate(requests)
    }
    active = [r for r in requests if r.num_pending > 0]
    idle = [r for r in requests if r.num_pending <= 0]
    resources = Resources(budget, blocks, slots=10, block_size=BLOCK, pool_blocks=pool, host_blocks=host)
    return plan(active, lambda: idle, resources, policy, now, tables.__getitem__, lambda _: [])


def taught(*pieces: float, final: float, num_requests: int = 20) -> Density:
    """A policy that has seen requests with pieces at these times since their opening, and the final context at ``final``."""
    policy = Density()
    for number in range(num_requests):
        for count, at in enumerate(pieces, 1):
            policy.saw_chunk(str(number), at, 100 * count, len(pieces) - count)
        policy.saw_final(str(number), final)
        policy.saw_end(str(number))
    return policy


class TestCompleteRequests:
    def test_the_shortest_remaining_work_comes_first(self) -> None:
        policy = Density()
        short, long = complete("short", 900, 1000), complete("long", 0, 1000)
        assert list(made(policy, long, short, blocks=99).grants) == ["short", "long"]

    def test_a_long_one_is_not_overtaken_for_ever(self) -> None:
        policy = Density()
        old, new = complete("old", 0, 10_000, last_chunk_at=0.0), complete("new", 0, 10, last_chunk_at=5.0)
        assert list(made(policy, old, new, blocks=9999).grants) == ["old"]

    def test_how_long_it_may_be_overtaken_follows_the_speed_of_the_engine(self) -> None:
        policy = Density()
        old, new = complete("old", 0, 10_000, last_chunk_at=0.0), complete("new", 0, 10, last_chunk_at=5.0)
        for _ in range(300):
            policy.saw_step(1000, 0.1)  # 100 us a token: its work is a second, ten of which it may wait
        assert list(made(policy, old, new, blocks=9999).grants) == ["new", "old"]

    def test_partial_requests_wait_while_prefill_is_to_be_done(self) -> None:
        assert list(made(Density(), partial("p", 0, 50), complete("c", 0, 50), blocks=99).grants) == ["c"]

    def test_partial_requests_run_beside_decodes_up_to_their_budget(self) -> None:
        grants = made(Density(), partial("p", 0, 5000), complete("c", 63, 64), blocks=999).grants
        assert grants == {"c": 1, "p": 1024}

    def test_one_takes_the_tail_of_those_behind_it_when_no_partial_is_left(self) -> None:
        first, last = complete("first", 160, 192), complete("last", 160, 400)
        plan_ = made(Density(), first, last, blocks=0)
        assert plan_.victims == [Victim("last", 8)]
        assert plan_.grants == {"first": 32}

    def test_one_that_does_not_fit_whole_gets_what_there_is(self) -> None:
        assert made(Density(), complete("c", 0, 1000), blocks=3).grants == {"c": 48}


class TestPartialRequests:
    def test_whoever_is_expected_to_stream_for_longer_loses_its_tail_first(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        policy.saw_chunk("begun", 9.9, 100, None)
        for at in (5.0, 9.9):
            policy.saw_chunk("nearly done", at, 100, None)
        plan_ = made(policy, partial("begun", 320, 320), partial("nearly done", 320, 320), complete("c", 0, 16), blocks=0)
        assert plan_.victims == [Victim("begun", 19)]

    def test_the_number_of_pieces_to_come_says_more_than_the_number_that_came(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        policy.saw_chunk("one to come", 9.9, 100, 1)
        policy.saw_chunk("none to come", 9.9, 100, 0)
        plan_ = made(
            policy, partial("one to come", 320, 320), partial("none to come", 320, 320), complete("c", 0, 16), blocks=0
        )
        assert plan_.victims == [Victim("one to come", 19)]

    def test_one_of_like_worth_displaces_nobody(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        for name in ("holder", "comer"):
            policy.saw_chunk(name, 9.9, 100, None)
        plan_ = made(policy, partial("holder", 320, 320), partial("comer", 0, 320), blocks=0)
        assert not plan_.victims
        assert plan_.refused == ["comer"]

    def test_a_holder_whose_kv_is_copied_out_makes_room_for_one_of_like_worth(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        for name in ("holder", "comer"):
            policy.saw_chunk(name, 9.9, 100, None)
        holder, comer = partial("holder", 320, 320), partial("comer", 0, 64)
        assert made(policy, replace(holder, loss_share=0.85), comer, blocks=1, host=20).victims == []
        assert made(policy, replace(holder, loss_share=0.2), comer, blocks=1, host=20).victims == [Victim("holder", 17)]
        assert made(policy, replace(holder, loss_share=0.2), comer, blocks=1, host=19).victims == []

    def test_host_memory_that_one_victim_takes_makes_no_room_beside_another(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        for name in ("one", "other", "comer"):
            policy.saw_chunk(name, 9.9, 100, None)
        holders = [replace(partial(name, 160, 160), loss_share=0.2) for name in ("one", "other")]
        comer = partial("comer", 0, 320)
        assert len(made(policy, *holders, comer, blocks=0, budget=320, host=20).victims) == 2
        assert len(made(policy, *holders, comer, blocks=0, budget=320, host=12).victims) == 1

    def test_one_worth_more_displaces_a_holder_worth_less_and_just_what_it_needs(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        policy.saw_chunk("holder", 9.9, 100, None)
        for at in (5.0, 9.9):
            policy.saw_chunk("comer", at, 100, None)
        plan_ = made(policy, partial("holder", 320, 320), partial("comer", 0, 64), blocks=1)
        assert plan_.victims == [Victim("holder", 17)]
        assert plan_.grants == {"comer": 64}

    def test_partial_requests_leave_a_share_of_the_pool_free_and_complete_ones_take_it(self) -> None:
        assert made(Density(), partial("p", 0, 64), blocks=2, pool=100).grants == {}
        assert made(Density(), partial("p", 0, 64), blocks=3, pool=100).grants == {"p": 16}
        assert made(Density(), complete("c", 0, 64), blocks=2, pool=100).grants == {"c": 32}

    def test_where_updates_change_the_end_the_end_is_worth_less(self) -> None:
        policy = Density()
        policy.saw_chunk("p", 0.0, 320, None)
        for _ in range(100):
            policy.saw_update("p", 1.0, 0.5)
        request = partial("p", 320, 320)
        assert policy.worth(request, 64, 10.0) > 5 * policy.worth(request, 320, 10.0)

    def test_where_all_is_appended_every_block_is_worth_the_same(self) -> None:
        policy = taught(0.0, 5.0, final=6.0)
        policy.saw_chunk("p", 9.0, 320, None)
        request = partial("p", 320, 320)
        assert policy.worth(request, 64, 10.0) == policy.worth(request, 320, 10.0)

    def test_requests_that_are_gone_are_forgotten(self) -> None:
        assert taught(0.0, 5.0, final=6.0)._seen == {}


class TestStreamingTimes:
    @given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.floats(0, 150))
    def test_it_is_the_mean_residual_of_the_latest_with_two_medians_beside(self, seen: list[float], elapsed: float) -> None:
        times = StreamingTimes()
        for residual in seen:
            times.add("kind", residual)
        kept = sorted(seen[-NUM_KEPT:])
        left = [residual - elapsed for residual in kept if residual > elapsed]
        expected = (sum(left) + 2 * kept[len(kept) // 2]) / (len(left) + 2)
        assert times.expected_s("kind", elapsed) == pytest.approx(expected, abs=1e-6)
        assert times.num_seen("kind") == len(kept)

    def test_kinds_are_apart(self) -> None:
        times = StreamingTimes()
        times.add("a", 1.0)
        assert (times.num_seen("a"), times.num_seen("b")) == (1, 0)


class TestSurvival:
    @given(st.lists(st.floats(0, 1), max_size=100))
    def test_it_falls_from_one_to_nothing(self, seen: list[float]) -> None:
        survival = Survival()
        for share in seen:
            survival.add(share)
        curve = [survival.at(n / 100) for n in range(101)]
        assert curve[0] == 1.0
        assert math.isclose(curve[-1], 0.0, abs_tol=1e-9)
        assert all(before >= after - 1e-12 for before, after in pairwise(curve))

    def test_it_follows_what_was_seen(self) -> None:
        survival = Survival()
        for _ in range(2000):
            survival.add(0.9)
        assert survival.at(0.8) > 0.9


def test_the_time_of_a_token_is_learned_from_steps_that_are_large_enough() -> None:
    time = TokenTime(guess_s=1e-6)
    for _ in range(500):
        time.add(1, 5.0)
        time.add(1000, 0.5)
    assert time.seconds == pytest.approx(5e-4, rel=1e-3)
