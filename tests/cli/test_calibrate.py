"""The command over measurements that are made up; tests/engine/test_calibrate.py measures."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stream2llm_rag.engine.calibrate import Measured
from stream2llm_rag.engine.cost_model import Direction
from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost
from stream2llm_rag.engine.fits import FitKey, load_fit
from stream2llm_rag.engine.fitting import CopyTiming, StepTiming, Timings
from tests.cli.conftest import run

KEY = FitKey("NVIDIA H200", "a-model", "bfloat16", "auto", 1, 1, False, 16, "FLASH_ATTN", "0.32.0")
H200 = Costs(StepCost(4e-3, 13.8e-6, 4.8e-10, 1.95e-8), CopyCost(1e-4, 4e-5), CopyCost(1e-4, 4e-5))


def timings(costs: Costs, seed: int = 0) -> Timings:
    dice = Random(seed)
    items = [(dice.randint(16, 4096), dice.randint(0, 12_000)) for _ in range(100)]
    steps = [StepTiming(*item, costs.step([item]) * dice.uniform(0.95, 1.05)) for item in items]
    sizes = [2**exponent for exponent in range(9)] * 3
    copies = [CopyTiming(Direction.OUT, size, costs.swap_out(size)) for size in sizes]
    return Timings(steps, [*copies, *(CopyTiming(Direction.IN, size, costs.swap_in(size)) for size in sizes)])


@dataclass
class Machine:
    """What is found when it is measured, and how the engine was opened."""

    costs: Costs = H200
    engine_args: dict[str, Any] | None = None
    seconds: float = 0.0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()

    @asynccontextmanager
    async def calibrating(model: str, **engine_args: Any) -> AsyncIterator[str]:
        machine.engine_args = {"model": model, **engine_args}
        yield "the engine"

    async def measure(engine: str, *, seconds: float, tell: Any) -> Measured:
        tell("Timing steps")
        machine.seconds = seconds
        return Measured(KEY, timings(machine.costs), 16_384)

    monkeypatch.setenv("STREAM2LLM_CACHE", str(tmp_path))
    monkeypatch.setattr("stream2llm_rag.cli.calibrate.calibrating", calibrating)
    monkeypatch.setattr("stream2llm_rag.cli.calibrate.measure", measure)
    return machine


def test_the_fit_is_shown_drawn_and_stored_where_an_engine_finds_it(machine: Machine, tmp_path: Path) -> None:
    done = run("calibrate", "--model", "a-model", "--seconds", "5", "--engine-arg", "block_size=16")
    assert done.exit_code == 0, done.stderr
    assert machine.engine_args == {"model": "a-model", "block_size": 16}
    assert machine.seconds == 5
    assert "a-model on NVIDIA H200" in done.stdout
    assert "a token" in done.stdout
    assert "• computing again   x copying out and in" in done.stdout
    assert done.stdout.count("•") > 20
    assert "┊" in done.stdout  # the crossover
    assert "At the beginning of a prompt" in done.stdout
    fit = load_fit(KEY)
    assert fit is not None
    assert str(KEY.path) in done.stderr.replace("\n", "")
    assert fit.costs.step.token_s == pytest.approx(13.8e-6, rel=0.1)
    assert fit.errors["step"] < 0.05


def test_where_copies_never_pay_it_says_so(machine: Machine) -> None:
    slow = CopyCost(1e-4, 1e-3)
    machine.costs = replace(H200, swap_out=slow, swap_in=slow)
    done = run("calibrate", "--model", "a-model")
    assert "always computed again" in done.stdout
    assert "┊" not in done.stdout


def test_a_check_of_a_fit_that_holds_succeeds_and_leaves_it_as_it_is(machine: Machine, tmp_path: Path) -> None:
    assert run("calibrate", "--model", "a-model").exit_code == 0
    before = KEY.path.read_text()
    done = run("calibrate", "--model", "a-model", "--check", "--json", tmp_path / "check.json")
    assert done.exit_code == 0, done.stderr
    assert "beside new measurements" in done.stdout
    assert KEY.path.read_text() == before
    stored = json.loads((tmp_path / "check.json").read_text())
    assert stored["is_check"]
    assert stored["errors"]["step"]["median"] < 0.05
    assert stored["errors"]["swap_out"]["num_measurements"] == 27
    assert len(stored["timings"]["steps"]) == 100


def test_a_check_of_a_fit_that_is_off_by_a_quarter_fails(machine: Machine) -> None:
    assert run("calibrate", "--model", "a-model").exit_code == 0
    machine.costs = replace(H200, swap_in=CopyCost(1.5e-4, 6e-5))
    done = run("calibrate", "--model", "a-model", "--check")
    assert done.exit_code == 1
    assert "33.3%" in done.stdout


def test_a_check_without_a_fit_says_what_to_do(machine: Machine) -> None:
    done = run("calibrate", "--model", "a-model", "--check")
    assert done.exit_code == 2
    assert "without --check first" in done.stderr
    assert "NVIDIA H200" in done.stderr


def test_without_a_model_the_tiny_one_is_measured_as_the_demo_runs_it(
    machine: Machine, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream2llm_rag.demo.models.build_tiny_model", lambda: model_path)
    assert run("calibrate").exit_code == 0
    assert machine.engine_args is not None
    assert machine.engine_args["model"] == str(model_path)
    assert machine.engine_args["dtype"] == "float32"
