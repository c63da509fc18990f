"""Victims whose KV is kept in host memory, scene by scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.outputs import KVConnectorOutput

from stream2llm_rag.engine.cost_model import CostModel, Direction, Preemption
from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost
from stream2llm_rag.engine.swap.metadata import SwapTimes

from .building import Setup
from .machine import Machine
from .test_scenes import ANSWER, SETUPS, counters, prompt, run


@pytest.fixture(
    params=[(name, caching) for name in SETUPS for caching in (True, False)],
    ids=lambda param: f"{param[0]}-{'cached' if param[1] else 'uncached'}",
)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """With host memory for all, and nothing computed again. At its end nothing is left."""
    name, caching = request.param
    scene = Machine(replace(SETUPS[name], prefix_caching=caching, num_host_blocks=50, preempt=Preemption.SWAP))
    yield scene
    for request_id in list(scene.sent):
        scene.abort(request_id)
    run(scene)
    assert scene.scheduler._swap.books.num_used_slots == 0


def computed_by(machine: Machine) -> int:
    """Step until the core would sleep. Returns how many tokens that computed."""
    num_tokens = 0
    while machine.has_work:
        num_tokens += machine.step()
    return num_tokens


def fill(machine: Machine, num_tokens: int = 39) -> None:
    """Let plain requests pass that together take every block of the pool, so that nothing survives in the prefix cache."""
    for i in range(4):
        machine.plain(f"filler{i}", prompt(num_tokens - 2, 20 + i), SamplingParams(max_tokens=1))
    run(machine)


def evict(machine: Machine, request_id: str, num_kept_blocks: int = 0) -> None:
    machine.scheduler._evict(machine.scheduler.requests[request_id], num_kept_blocks)
    machine.check()


@pytest.mark.parametrize("depth", [2, 3])
def test_what_a_step_in_flight_copies_in_is_not_copied_out_early(depth: int) -> None:
    tight = Setup(depth=depth, v2_runner=True, block_size=4, max_model_len=32, num_blocks=9, max_num_seqs=2, token_budget=64)
    machine = Machine(replace(tight, num_host_blocks=50, preempt=Preemption.SWAP))
    machine.open("s", prompt(30))
    run(machine)
    evict(machine, "s")
    machine.plain("filler", prompt(30, 1), SamplingParams(max_tokens=1))
    stream = machine.scheduler.requests["s"]
    while not stream.num_computed_tokens:
        machine.step()
    assert stream.num_in_flight_tokens == 0  # the step that copies it in computes nothing of it
    evict(machine, "s")
    machine.plain("next", prompt(30, 2), SamplingParams(max_tokens=1))
    run(machine)  # checks every copy
    assert machine.num_answered == 2


@pytest.mark.parametrize("depth", [2, 3])
def test_nor_what_another_stream_has_by_a_prefix_hit_on_that(depth: int) -> None:
    roomy = Setup(depth=depth, v2_runner=True, block_size=4, max_model_len=40, num_blocks=21, max_num_seqs=4, token_budget=128)
    machine = Machine(replace(roomy, num_host_blocks=80, preempt=Preemption.SWAP))
    for name in ("loads", "hits"):
        machine.open(name, prompt(29))
        run(machine)
    for name in ("loads", "hits"):
        evict(machine, name)
    for i in range(2):
        machine.plain(f"filler{i}", prompt(39, 20 + i), SamplingParams(max_tokens=1))
    streams = [machine.scheduler.requests[name] for name in ("loads", "hits")]
    while not all(stream.num_computed_tokens for stream in streams):
        machine.step()
    assert len({tuple(machine.scheduler.kv_cache_manager.get_block_ids(name)[0]) for name in ("loads", "hits")}) == 1
    for name in ("hits", "loads"):
        evict(machine, name)
    for i in range(2):
        machine.plain(f"next{i}", prompt(39, 30 + i), SamplingParams(max_tokens=1))
    run(machine)  # checks every copy
    assert machine.num_answered == 4


def test_a_stream_that_lost_all_computes_only_what_is_new(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    evict(machine, "s")
    fill(machine)
    machine.finish("s", [*prompt(30), 1, 2, 3], SamplingParams(max_tokens=1))
    assert computed_by(machine) == 4
    assert machine.num_answered == 5


def test_a_stream_that_lost_its_tail_in_pieces_computes_only_what_is_new(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    for num_kept in (6, 5, 2):
        evict(machine, "s", num_kept)
    machine.finish("s", [*prompt(30), 1, 2, 3], SamplingParams(max_tokens=1))
    assert computed_by(machine) == 4
    assert counters(machine).num_blocks_in == 6


def test_one_that_had_been_computed_comes_back_without_computing(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    evict(machine, "s")
    assert computed_by(machine) == 0
    assert machine.scheduler.requests["s"].num_computed_tokens == 29


def test_after_an_update_only_what_is_common_comes_back(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    evict(machine, "s")
    machine.update("s", prompt(17) + prompt(9, 5))
    assert computed_by(machine) == 8  # of the 26 tokens 17 are as they were, and the last one is held back


def test_a_plain_request_goes_on_where_it_was(machine: Machine) -> None:
    machine.plain("p", prompt(20), SamplingParams(max_tokens=6))
    num_tokens = machine.step()
    while len(machine.sent["p"].answer) < 3:
        num_tokens += machine.step()
    evict(machine, "p")
    assert num_tokens + computed_by(machine) == 20 + 6 - 1
    assert machine.num_answered == 1


def test_an_abort_frees_slots_at_once(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    evict(machine, "s")
    machine.plain("filler", prompt(38, 9), ANSWER)
    machine.abort("s")
    assert machine.scheduler._swap.books.num_used_slots == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_a_load_is_not_begun_without_room_for_it(depth: int) -> None:
    """Two large streams whose KV does not fit together: one comes back, the other stays where it is."""
    machine = Machine(Setup("fcfs", depth, num_blocks=11, num_host_blocks=50, preempt=Preemption.SWAP))
    for name, first in (("a", 0), ("b", 1)):
        machine.open(name, prompt(30, first))
        run(machine)
    before = counters(machine).num_swap_evictions
    machine.finish("a", [*prompt(30), 1], ANSWER)
    machine.finish("b", [*prompt(30, 1), 1], ANSWER)
    run(machine)
    assert machine.num_answered == 2
    assert counters(machine).num_swap_evictions <= before + 1
    assert counters(machine).num_grants_refused == 0


def test_a_load_that_was_put_off_comes_with_the_next_step() -> None:
    """Two streams of more tokens than a step may load, beside a request that decodes and leaves room for them."""
    machine = Machine(Setup("fcfs", num_blocks=40, num_host_blocks=50, preempt=Preemption.SWAP))
    for name, first in (("a", 0), ("b", 1)):
        machine.open(name, prompt(30, first))
    run(machine)
    for name in ("a", "b"):
        evict(machine, name)
    machine.plain("p", prompt(5, 2), SamplingParams(max_tokens=9))
    back = []
    for _ in range(4):
        machine.step()
        back.append([name for name in ("a", "b") if machine.scheduler.requests[name].num_computed_tokens == 29])
    assert back == [["a"], ["a", "b"], ["a", "b"], ["a", "b"]]
    assert "p" in machine.sent


@pytest.mark.parametrize("num_host_blocks", [None, 50])
def test_nobody_is_displaced_for_a_stream_that_lapsed_into_host_memory(num_host_blocks: int | None) -> None:
    """It is copied back where there is room, or when it has something to compute. To be computed again it may claim a place."""
    machine = Machine(Setup("density", num_blocks=11, num_host_blocks=num_host_blocks, preempt=Preemption.SWAP))
    machine.open("s", prompt(24))
    run(machine)
    evict(machine, "s")
    [lapsed] = machine.scheduler._lapsed.values()
    assert machine.scheduler._live(lapsed).may_evict == (num_host_blocks is None)


def test_losing_what_is_copied_costs_a_share_of_computing_it_again() -> None:
    machine = Machine(Setup(num_host_blocks=50, preempt=Preemption.AUTO))
    swap = machine.scheduler._swap
    quick, slow = CopyCost(0.0, 1e-4), CopyCost(0.0, 1.0)
    swap.cost = CostModel(Costs(StepCost(1e-3, 1e-3), quick, quick), machine.setup.block_size)
    assert machine.scheduler._loss_share(40) == pytest.approx(10 * 2e-4 / 40e-3)
    swap.cost = CostModel(Costs(StepCost(1e-3, 1e-3), slow, slow), machine.setup.block_size)
    assert machine.scheduler._loss_share(40) == 1.0
    assert machine.scheduler._loss_share(0) == 1.0


def test_times_of_steps_and_copies_reach_the_cost_model() -> None:
    machine = Machine(Setup(num_host_blocks=5, preempt=Preemption.AUTO))
    seen: list[Any] = []
    cost = machine.scheduler._swap.cost
    cost.saw_step = lambda items, seconds: seen.append((items, seconds))
    cost.saw_copy = lambda way, num_blocks, seconds: seen.append((way, num_blocks, seconds))
    machine.open("s", prompt(30))
    machine.step()
    machine.step()
    times = SwapTimes({0: 0.5, 1: 0.25}, {(0, Direction.OUT): (3, 0.125)})
    machine.scheduler.connector.update_connector_output(KVConnectorOutput(kv_connector_worker_meta=times))
    assert seen == [(Direction.OUT, 3, 0.125), ([(16, 0)], 0.5), ([(13, 16)], 0.25)]
