"""Whoever can run does, in the order of the policy, and the core sleeps when nobody can."""

from __future__ import annotations

from dataclasses import replace

import pytest
from vllm import SamplingParams

from stream2llm_rag.engine.policy import POLICIES

from .building import Setup
from .episodes import Episode
from .machine import Machine
from .test_scenes import ANSWER, counters, prompt, run

# Five blocks of four tokens: a stream of 17 computed tokens has them all.
TIGHT = Setup(max_model_len=20, num_blocks=6, max_num_seqs=3, token_budget=32)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_idle_streams_that_do_not_fit_together_do_not_take_turns(policy: str) -> None:
    machine = Machine(replace(TIGHT, policy=policy))
    machine.open("one", prompt(16))
    run(machine)
    machine.open("other", prompt(16, 1))
    run(machine)
    evicted = counters(machine).num_evictions
    machine.plain("plain", prompt(2, 2), SamplingParams(max_tokens=17))  # keeps the core awake
    run(machine)
    assert machine.num_answered == 1
    assert evicted <= 1  # none where the policy finds the second worth no more than the first
    assert counters(machine).num_evictions <= evicted + 5  # at most one for each block that "plain" comes to hold


def test_an_evicted_stream_comes_back_when_another_has_computed_its_prefix() -> None:
    machine = Machine(Setup(block_size=4, max_model_len=32, num_blocks=9, max_num_seqs=3, token_budget=64))
    machine.open("evicted", prompt(9))
    run(machine)
    machine.open("other", prompt(29, 1))
    run(machine)
    machine.abort("other")
    machine.open("same prefix", prompt(29))  # takes all but one block: less than the evicted one needs without it
    run(machine)
    assert machine.scheduler.requests["evicted"].num_computed_tokens == 8


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_core_sleeps_beside_an_evicted_stream_whose_prefix_others_hold(policy: str) -> None:
    """All that the stream may compute is in the cache, but it must compute a token, and there is no block for that."""
    machine = Machine(Setup(policy, block_size=4, max_model_len=32, num_blocks=11, max_num_seqs=8, token_budget=64))
    machine.open("holder", prompt(7))
    run(machine)
    machine.open("evicted", prompt(5))
    run(machine)
    machine.scheduler._evict(machine.scheduler.requests["evicted"])
    machine.open("filler", prompt(31, 1))
    run(machine)
    assert machine.scheduler.requests["evicted"].num_computed_tokens == 0


def test_an_evicted_stream_comes_back_when_there_is_room() -> None:
    machine = Machine(TIGHT)
    machine.open("stream", prompt(16))
    run(machine)
    machine.plain("plain", prompt(10, 1), ANSWER)
    run(machine)
    assert counters(machine).num_evictions == 1
    assert machine.scheduler.requests["stream"].num_computed_tokens == 15


def test_an_evicted_stream_has_its_rights_back_with_its_next_operation() -> None:
    machine = Machine(replace(TIGHT, prefix_caching=False))
    machine.open("one", prompt(16))
    run(machine)
    machine.open("other", prompt(16, 1))
    run(machine)
    machine.append("one", [1])
    run(machine)
    assert machine.scheduler.requests["one"].num_computed_tokens == 16


def test_an_evicted_stream_comes_behind_those_with_something_new() -> None:
    machine = Machine(Setup(num_blocks=11, token_budget=8))
    machine.open("early", prompt(20))
    run(machine)
    machine.plain("plain", prompt(35, 1), SamplingParams(max_tokens=1))
    while not machine.num_answered:
        machine.step()
    machine.open("late", prompt(9, 2))
    machine.step()
    assert machine.scheduler.requests["late"].num_computed_tokens == 8
    assert machine.scheduler.requests["early"].num_computed_tokens == 0


def test_nothing_is_granted_to_whoever_awaits_output_in_flight() -> None:
    setup = Setup(depth=2, prefix_caching=False, chaos=0.5)
    episodes = [Episode(seed, setup=setup) for seed in range(10)]
    for episode in episodes:
        episode.run()
    assert sum(counters(episode.machine).num_evictions for episode in episodes) > 50
    assert sum(counters(episode.machine).num_grants_refused for episode in episodes) == 0


def test_a_complete_request_takes_the_tokens_of_a_step_before_a_running_partial_one() -> None:
    machine = Machine(Setup(token_budget=8))
    machine.open("partial", prompt(35))
    machine.step()
    machine.plain("complete", prompt(5, 1), ANSWER)
    machine.step()
    assert machine.scheduler.requests["complete"].num_output_tokens == 1
    assert machine.scheduler.requests["partial"].num_computed_tokens == 8 + 3


def test_a_chunk_behind_a_prefix_hit_gets_the_blocks_of_both() -> None:
    """The hit's block is free and must be taken too: counted without it, the grant is refused for ever."""
    machine = Machine(Setup("mcps", max_model_len=12, num_blocks=4, token_budget=3, max_num_seqs=3))
    shared = prompt(4)
    machine.plain("before", [*shared, 1], SamplingParams(max_tokens=1))
    run(machine)
    machine.open("idle", prompt(8, 3))
    run(machine)
    machine.open("stream", [*shared, *prompt(7, 5)])
    run(machine)
    assert counters(machine).num_grants_refused == 0
    assert machine.scheduler.requests["stream"].num_computed_tokens == 10


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_an_old_request_is_answered_when_arrivals_stop(policy: str) -> None:
    machine = Machine(replace(TIGHT, policy=policy))
    machine.finish("old", prompt(15), ANSWER)
    for i in range(30):
        machine.plain(f"p{i}", prompt(9, i), ANSWER)
        machine.step()
    run(machine, limit=1000)
    assert machine.num_answered == 31
