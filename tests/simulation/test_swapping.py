"""Host memory for KV, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.frontends import make_frontend
from stream2llm_rag.simulation.result import SimulationResult
from stream2llm_rag.simulation.simulator import simulate
from stream2llm_rag.simulation.step_time import StepTime

from .running import SMALL, linear, random_trace

COMPUTING = StepTime(base_s=1e-3, token_s=1e-2)
QUICK = replace(COMPUTING, swap_out_token_s=1e-4, swap_in_token_s=1e-4)
SLOW = replace(COMPUTING, swap_out_token_s=1.0, swap_in_token_s=1.0)


def run(
    name: str,
    step_time: StepTime = QUICK,
    num_host_blocks: int = 500,
    depth: int = 1,
    seed: int = 0,
    prefix_caching: bool = False,
) -> SimulationResult:
    frontend = make_frontend(name)
    shape = replace(
        SMALL, depth=depth, prefix_caching=prefix_caching, num_host_blocks=num_host_blocks if frontend.swaps else None
    )
    return simulate(random_trace(seed), frontend, step_time, shape)


@pytest.mark.parametrize("policy", ["fcfs", "density", "mcps"])
@pytest.mark.parametrize("depth", [1, 2])
def test_with_enough_host_memory_nothing_is_computed_twice(policy: str, depth: int) -> None:
    usual, swapping = run(policy, depth=depth), run(f"{policy}+swap", depth=depth)
    assert usual.summary.num_computed > swapping.summary.num_computed
    needed = sum(record.num_prompt_tokens + record.num_output_tokens - 1 for record in swapping.records)
    lost_in_flight = 1.02 if depth > 1 else 1.0  # what a step in flight computes of a victim is computed again
    assert needed <= swapping.summary.num_computed <= lost_in_flight * needed
    assert swapping.summary.num_cached == swapping.summary.num_evicted > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["fcfs+auto", "density+hints+swap", "tail-fcfs+swap"])
@pytest.mark.parametrize("num_host_blocks", [0, 3])
def test_the_books_balance_with_little_host_memory_and_updates(name: str, seed: int, num_host_blocks: int) -> None:
    result = run(name, num_host_blocks=num_host_blocks, seed=seed, prefix_caching=seed > 1)
    assert result.summary.num_unfinished == 0
    assert result.summary.num_evictions > 0


def test_the_cost_model_keeps_off_copies_that_do_not_pay() -> None:
    usual, slow, quick = run("fcfs"), run("fcfs+auto", SLOW), run("fcfs+auto", QUICK)
    assert slow.summary.num_cached == 0
    assert slow.records == usual.records
    assert quick.summary.num_cached > 0


def test_copies_take_their_time() -> None:
    quick, slow = run("fcfs+swap", QUICK), run("fcfs+swap", SLOW)
    assert slow.summary.completion_s > quick.summary.completion_s + 10
    assert slow.engine.busy_s > quick.engine.busy_s + 10


def test_a_clock_that_does_not_know_copies_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Write a StepTime"):
        simulate(random_trace(0), make_frontend("fcfs+swap"), linear, replace(SMALL, num_host_blocks=10))


@pytest.mark.parametrize("name", ["fcfs+swap+auto", "fcfs+sometimes", "ns+swap", "+swap"])
def test_a_front_end_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no front end"):
        make_frontend(name)


def test_to_recompute_is_what_is_done_without() -> None:
    assert make_frontend("density+hints+recompute") == make_frontend("density+hints")
    assert make_frontend("fcfs+hints+auto").name == "fcfs+hints+auto"
