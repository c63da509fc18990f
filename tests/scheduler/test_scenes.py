"""States that are known to be hard, each as small as it can be made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.interface import PauseState

from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.engine.protocol import EXTRA_ARGS_KEY, Op, OpKind

from .building import Setup
from .episodes import FORGED
from .machine import Machine

ANSWER = SamplingParams(max_tokens=4)
SETUPS = {
    "sync-v1": Setup(depth=1),
    "sync-v2": Setup(depth=1, v2_runner=True),
    "async-v1": Setup(depth=2),
    "async-v2": Setup(depth=2, v2_runner=True),
    "pipeline-v2": Setup(depth=3, v2_runner=True),
}


@pytest.fixture(params=SETUPS.values(), ids=SETUPS.keys())
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """At its end nothing is left, whatever the scene did."""
    scene = Machine(request.param)
    yield scene
    for request_id in list(scene.sent):
        scene.abort(request_id)
    run(scene)
    pool = scene.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def run(machine: Machine, *, limit: int = 400) -> None:
    """Step until the core would sleep."""
    for _ in range(limit):
        if not machine.has_work:
            return
        machine.step()
    raise AssertionError(f"still working after {limit} steps: {list(machine.sent)}")


def prompt(num_tokens: int, first: int = 0) -> list[int]:
    return [(first * 7 + i * i + i // 3) % 50 for i in range(num_tokens)]


def counters(machine: Machine) -> Any:
    return machine.scheduler._feedback.counters


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_500_idle_streams_that_fill_the_pool_and_a_plain_request(policy: str) -> None:
    setup = Setup(policy, block_size=16, max_model_len=512, num_blocks=501, max_num_seqs=512, token_budget=2048)
    machine = Machine(setup)
    for i in range(500):
        machine.open(f"s{i}", prompt(9, i))
    run(machine)
    num_reserved = POLICIES[policy].rules.reserved_share * (setup.num_blocks - 1)
    assert machine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == num_reserved
    machine.plain("plain", prompt(300), ANSWER)
    run(machine)
    assert "plain" not in machine.sent
    assert len(machine.sent) == 500


def test_as_many_idle_streams_as_slots_and_a_plain_request(machine: Machine) -> None:
    for i in range(machine.setup.max_num_seqs):
        machine.open(f"s{i}", prompt(5, i))
    run(machine)
    machine.plain("plain", prompt(6), ANSWER)
    run(machine)
    assert "plain" not in machine.sent


def test_all_finish_at_once(machine: Machine) -> None:
    for i in range(12):
        machine.open(f"s{i}", prompt(20, i))
        machine.step()
    for i in range(12):
        machine.finish(f"s{i}", [*prompt(20, i), 1, 2], ANSWER)
    run(machine)
    assert machine.num_answered == 12


@pytest.mark.parametrize("num_steps", range(6))
def test_an_update_that_leaves_one_token(machine: Machine, num_steps: int) -> None:
    machine.open("s", prompt(30))
    for _ in range(num_steps):
        machine.step()
    machine.update("s", prompt(1))
    run(machine)
    machine.update("s", prompt(1) + prompt(20, 1))
    machine.step()
    machine.finish("s", prompt(1), ANSWER)
    run(machine)
    assert machine.num_answered == 1


def test_an_update_to_what_is_there_costs_nothing(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    before = machine.scheduler.requests["s"].num_computed_tokens
    machine.update("s", prompt(30))
    assert machine.scheduler.requests["s"].num_computed_tokens == before == 29
    assert not machine.scheduler.has_unfinished_requests()


def test_a_finish_whose_prompt_is_computed_already(machine: Machine) -> None:
    machine.open("s", prompt(30))
    run(machine)
    machine.finish("s", prompt(30), ANSWER)
    run(machine)
    assert machine.num_answered == 1


def test_a_finish_that_opens_its_stream(machine: Machine) -> None:
    machine.finish("s", prompt(30), ANSWER)
    run(machine)
    assert machine.num_answered == 1


@pytest.mark.parametrize("when", range(24))
def test_an_abort_between_any_two_steps_and_operations(machine: Machine, when: int) -> None:
    script = [
        lambda: machine.open("s", prompt(10)),
        lambda: machine.append("s", prompt(9, 2)),
        lambda: machine.update("s", prompt(12, 0)),
        lambda: machine.finish("s", prompt(14), ANSWER),
    ]
    turns = [turn for act in script for turn in (act, *[machine.step] * 5)]
    for turn in turns[: when + 1]:
        if machine.has_work or turn in script:
            turn()
    machine.abort("s")
    run(machine)
    assert machine.sent == {}


def test_a_prompt_as_long_as_the_model_allows(machine: Machine) -> None:
    longest = prompt(machine.setup.max_model_len - 1)
    machine.open("s", longest[:20])
    machine.append("s", longest[20:])
    machine.finish("s", longest, ANSWER)
    run(machine)
    assert machine.num_answered == 1


@pytest.mark.parametrize("kind", OpKind)
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(machine: Machine, kind: OpKind) -> None:
    """vLLM would never schedule its last token (``max_model_len - 1`` in ``Scheduler.schedule``), and never say so."""
    machine.open("s", prompt(20))
    run(machine)
    size = machine.setup.max_model_len - (20 if kind is OpKind.APPEND else 0)
    before = counters(machine).num_ops_refused
    machine.stray("s", prompt(size), Op(kind))
    assert counters(machine).num_ops_refused == before + 1
    run(machine)


@pytest.mark.parametrize("fields", FORGED)
@pytest.mark.parametrize("target", ["stream", "plain", "complete"])
def test_a_forged_operation_touches_nobody(machine: Machine, fields: object, target: str) -> None:
    machine.open("stream", prompt(20))
    machine.plain("plain", prompt(8), ANSWER)
    machine.finish("complete", prompt(9, 1), ANSWER)
    before = counters(machine).num_ops_refused
    machine.stray(target, prompt(5, 3), **{EXTRA_ARGS_KEY: fields})
    assert counters(machine).num_ops_refused == before + 1
    run(machine)
    assert machine.num_answered == 2


def test_an_operation_of_a_stream_that_is_gone_opens_nothing(machine: Machine) -> None:
    machine.open("s", prompt(20))
    machine.abort("s")
    machine.stray("s", prompt(5), Op(OpKind.APPEND))
    machine.stray("s", prompt(5), Op(OpKind.UPDATE))
    assert machine.scheduler.requests == {}


def test_a_pause_lets_what_runs_come_to_rest(machine: Machine) -> None:
    machine.open("s", prompt(30))
    machine.plain("plain", prompt(8), ANSWER)
    machine.step()
    machine.pause(PauseState.PAUSED_NEW)
    run(machine)
    machine.pause(PauseState.UNPAUSED)
    run(machine)
    assert "plain" not in machine.sent


def test_a_request_that_is_evicted_and_goes_on_in_the_same_step(machine: Machine) -> None:
    machine.finish("s", prompt(10), SamplingParams(max_tokens=9))
    while len(machine.sent["s"].answer) < 3:
        machine.step()
    machine.pause(PauseState.PAUSED_ALL)
    run(machine)
    machine.pause(PauseState.UNPAUSED)
    machine.scheduler._chaos = 1.0
    machine.step()
    machine.scheduler._chaos = 0.0
    assert counters(machine).num_evictions == 1
    run(machine)
    assert machine.num_answered == 1


def test_the_cache_is_reset_with_streams_that_wait_and_idle(machine: Machine) -> None:
    machine.open("waits", prompt(30))
    machine.open("idles", prompt(8, 1))
    run(machine)
    machine.append("waits", prompt(5, 2))
    machine.reset_prefix_cache(running_too=True)
    assert machine.scheduler.kv_cache_manager.usage == 0
    machine.finish("idles", prompt(8, 1), ANSWER)
    run(machine)
    assert machine.num_answered == 1
