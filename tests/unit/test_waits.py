"""When a request waits and when it idles, to the tick, on the real scheduler under a clock of ours."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams

from stream2llm_rag.engine.feedback import CoreFeedback, StepKind, StepRecord
from tests.scheduler.building import Setup
from tests.scheduler.machine import Machine

RESTS = {StepKind.WAITED, StepKind.IDLE}
ONE_TOKEN = SamplingParams(max_tokens=1)


class Log(CoreFeedback):
    """Keeps the records that a step hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[StepRecord] = []

    def drain(self) -> dict[str, Any]:
        self.kept += self._records
        return super().drain()

    def spans(self, request_id: str, *kinds: StepKind) -> list[tuple[str, float, float]]:
        records = [*self.kept, *self._records]
        return [(str(r.kind), r.started_s, r.ended_s) for r in records if r.request_id == request_id and r.kind in kinds]


def timed(setup: Setup) -> tuple[Machine, Log]:
    """A machine whose scheduler reads the machine's clock: an operation takes a quarter, a step one."""
    machine, log = Machine(setup), Log()
    machine.scheduler._clock = lambda: machine._now
    machine.scheduler._last_started = machine._now
    machine.scheduler._feedback = log
    return machine, log


def test_a_stream_waits_for_its_step_then_idles_until_more_comes() -> None:
    machine, log = timed(Setup())
    machine.open("a", range(10))  # at 1.25
    for _ in range(4):  # it runs at 2.25; the others find nothing to do
        machine.step()
    machine.append("a", range(5))  # at 5.5
    machine.step()
    assert log.spans("a", *RESTS) == [("waited", 1.25, 2.25), ("idle", 2.25, 5.5), ("waited", 5.5, 6.5)]


def test_a_stream_waits_as_long_as_others_take_every_step() -> None:
    machine, log = timed(Setup())
    machine.plain("b", range(100, 138), ONE_TOKEN)  # complete, so it goes first: 16 + 16 + 6 of 16 tokens a step
    machine.open("a", range(15))  # at 1.5, and takes the last 10 of the third step
    for _ in range(4):
        machine.step()
    assert log.spans("a", StepKind.COMPUTED) == [("computed", 4.5, 4.5), ("computed", 5.5, 5.5)]
    assert log.spans("a", *RESTS) == [("waited", 1.5, 4.5)]  # from one step to the next it does not wait


def test_a_stream_that_runs_with_the_step_in_which_more_comes_does_not_idle() -> None:
    machine, log = timed(Setup(depth=2))
    machine.open("a", range(10))
    machine.step()  # in flight
    machine.append("a", range(5))
    while machine.has_work:
        machine.step()
    assert [kind for kind, *_ in log.spans("a", *RESTS)] == ["waited"]


def test_one_that_was_evicted_while_idle_goes_on_idling() -> None:
    machine, log = timed(Setup())
    machine.open("a", range(10))
    machine.step()
    machine.scheduler._evict(machine.scheduler.requests["a"])
    machine.plain("b", range(100, 104), ONE_TOKEN)
    machine.step()  # there is room for both at 3.5
    machine.append("a", range(2))  # at 3.75
    assert log.spans("a", StepKind.COMPUTED) == [("computed", 2.25, 2.25), ("computed", 3.5, 3.5)]
    assert log.spans("a", *RESTS) == [("waited", 1.25, 2.25), ("idle", 2.25, 3.5), ("idle", 3.5, 3.75)]


def test_one_that_was_evicted_while_it_ran_waits() -> None:
    machine, log = timed(Setup())
    machine.open("a", range(30))
    machine.step()  # 16 of 29
    machine.scheduler._evict(machine.scheduler.requests["a"])
    machine.plain("b", range(100, 138), ONE_TOKEN)
    for _ in range(3):
        machine.step()
    assert log.spans("a", *RESTS) == [("waited", 1.25, 2.25), ("waited", 2.25, 5.5)]


@pytest.mark.parametrize("depth", [1, 2])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_rests_of_a_request_never_overlap_each_other_or_its_steps(depth: int, seed: int) -> None:
    dice = random.Random(seed)
    machine, log = timed(Setup(depth=depth, chaos=0.2, num_blocks=14))
    ids = [f"r{i}" for i in range(5)]
    opened: dict[str, float] = {}
    for _ in range(60):
        one, tokens = dice.choice(ids), range(dice.randint(1, 8))
        if one not in opened:
            machine.open(one, tokens)
            opened[one] = machine._now
        elif one in machine.sent and machine.sent[one].partial:
            before = machine.sent[one].tokens
            match dice.randrange(4):
                case 0 if len(before) + 8 < 38:
                    machine.append(one, tokens)
                case 1:
                    machine.update(one, [*before[: dice.randrange(min(len(before), 30))], *tokens])
                case 2:
                    machine.finish(one, before, ONE_TOKEN)
        machine.step()
    for one, came in opened.items():
        rests = log.spans(one, *RESTS)
        assert all(came <= start < end for _, start, end in rests)
        assert all(before[2] <= after[1] for before, after in pairwise(rests))
        for _, began, ended in log.spans(one, StepKind.COMPUTED):
            assert all(end <= began or ended <= start for _, start, end in rests)
