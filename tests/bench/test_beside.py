"""What a round's own steps say of the machine."""

from __future__ import annotations

import random

import pytest

from stream2llm_rag.bench.beside import Beside, _own_step_time, slowdown
from stream2llm_rag.bench.replay import Round
from stream2llm_rag.bench.steps import Step
from stream2llm_rag.bench.ways import NON_STREAMING
from stream2llm_rag.simulation.step_time import StepTime
from tests.simulation.samples import sample_run

TRUTH = StepTime(base_s=0.004, token_s=5e-5)


def round_of(*steps: Step) -> Round:
    return Round(NON_STREAMING, (), {}, steps, (), 1.0)


def steps(spread: float, gap_s: float = 0.0) -> list[Step]:
    dice = random.Random(0)
    items = [((dice.randrange(1, 256), 0),) for _ in range(400)]
    return [Step(one, TRUTH(one) * dice.uniform(1 - spread, 1 + spread), gap_s) for one in items]


def test_a_round_that_was_slower_is_seen_as_slower() -> None:
    slow = [Step(step.items, 1.5 * step.seconds) for step in steps(spread=0.0)]
    assert slowdown([round_of(*slow)], TRUTH) == pytest.approx(1.5)
    assert slowdown([], TRUTH) == 1.0


def test_steps_that_vary_take_as_long_in_sum() -> None:
    done = round_of(*steps(spread=0.8))
    assert slowdown([done], _own_step_time(done, TRUTH)) == pytest.approx(1.0)


def test_pauses_between_steps_belong_to_them_and_waits_for_work_do_not() -> None:
    short, long = round_of(*steps(0.0, gap_s=0.002)), round_of(*steps(0.0, gap_s=0.5))
    assert _own_step_time(short, TRUTH).base_s == pytest.approx(0.006, rel=0.01)
    assert _own_step_time(long, TRUTH).base_s == pytest.approx(0.004, rel=0.01)


def test_a_round_with_few_steps_says_nothing() -> None:
    assert _own_step_time(round_of(*steps(0.0)[:3]), TRUTH) is TRUTH


@pytest.mark.parametrize(
    ("measured_s", "simulated_s", "informed_s", "said"),
    [
        (1.0, 1.1, 0.9, None),
        (1.0, 1.1, 1.4, "errors may cancel out (1.400 s)"),
        (1.0, 0.5, 0.9, "took 1.50 times what the calibration says"),
        (1.0, 0.5, 0.6, "explain all of it (0.600 s)"),
    ],
)
def test_where_measured_and_simulated_part_is_said_with_what_is_known_of_it(measured_s, simulated_s, informed_s, said) -> None:
    runs = [sample_run("density", [wait, wait]) for wait in (measured_s, simulated_s, informed_s)]
    remarks = Beside(NON_STREAMING, *runs, slowdown=1.5).remarks()
    assert len(remarks) == (0 if said is None else 2)
    assert all(said in remark and f"{measured_s:.3f} s, simulated {simulated_s:.3f} s" in remark for remark in remarks)
