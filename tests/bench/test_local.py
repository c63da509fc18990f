"""The experiment on this machine, with engines in the place of the real ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag.bench.beside import is_close
from stream2llm_rag.bench.calibration import calibrate
from stream2llm_rag.bench.local import LocalSettings, make_plan
from stream2llm_rag.bench.rounds import RoundSettings
from stream2llm_rag.bench.scaling import Scale
from stream2llm_rag.bench.targets import KINDS, NonStreaming, Target
from stream2llm_rag.bench.ways import NON_STREAMING, Way
from stream2llm_rag.errors import InvalidInputError
from tests.cli.conftest import run

from .fakes import FakeStock, FakeStreams, step_s


@pytest.fixture
def fake_engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Fake engines, and the arguments that they were opened with."""
    opened: list[dict[str, Any]] = []

    @asynccontextmanager
    async def open_fakes(
        model: Path, ways: Iterable[Way], engine_args: dict[str, Any], on_start: Callable[[Way], None] = print
    ) -> AsyncIterator[list[Target]]:
        opened.append(engine_args)
        yield [KINDS[way.kind](way, FakeStreams() if way.policy else FakeStock()) for way in ways]

    monkeypatch.setattr("stream2llm_rag.bench.local.open_targets", open_fakes)
    return opened


async def test_calibration_finds_the_speed_of_the_core() -> None:
    target = NonStreaming(NON_STREAMING, FakeStock())
    found = await calibrate(target, 1000, RoundSettings(range(5, 2000), stall_limit_s=60.0))
    assert found.fit.step_time([(500, 0)]) == pytest.approx(step_s(500), rel=0.01)
    assert found.fit.step_time([(20, 0)]) == pytest.approx(step_s(20), rel=0.01)


def test_a_plan_gives_every_prompt_room() -> None:
    plan = make_plan(LocalSettings(workload="anns", num_requests=100, num_rounds=4, pool=0.001))
    longest = max(max(query.prompt_lengths) for trace in plan.scaled(Scale(1 / 8, 1.0)) for query in trace)
    assert [len(trace) for trace in plan.traces] == [25] * 4
    assert longest < plan.max_model_len <= (plan.num_blocks - 1) * plan.block_size
    assert plan.token_budget == 1024, "an eighth of the paper's"


@pytest.mark.parametrize(
    "wrong", [{"workload": "x"}, {"num_requests": 2, "num_rounds": 3}, {"pool": 0.0}, {"ways": ()}, {"stall_limit_s": 0.0}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        LocalSettings(**wrong)


def test_close_is_within_a_quarter() -> None:
    assert is_close(1.0, 1.2)
    assert is_close(float("inf"), float("inf"))
    assert not is_close(1.0, 1.3)
    assert not is_close(1.0, float("inf"))


def test_the_command_measures_and_simulates_the_same_and_says_where_they_part(
    fake_engines: list[dict[str, Any]], tmp_path: Path
) -> None:
    files = ("--json", tmp_path / "bench.json", "--csv", tmp_path / "bench.csv")
    done = run("bench", "--requests", "24", "--rounds", "2", *files)
    assert done.exit_code == 0, done.stderr
    assert "Round 2, ns" in done.stderr
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert [(one["index"], one["way"]) for one in stored["rounds"]][:4] == [
        (0, "ns"), (0, "native"), (0, stored["default_policy"]), (1, stored["default_policy"]),
    ]  # fmt: skip
    assert len({one["series"] for one in stored["runs"]}) == 3
    assert all(one["summary"]["num_requests"] == 24 for one in stored["runs"])
    measured, *_ = stored["runs"]
    assert measured["summary"]["num_computed"] == measured["summary"]["num_prompt_tokens"]
    assert fake_engines[0]["enable_prefix_caching"] is False
    assert len((tmp_path / "bench.csv").read_text().splitlines()) == 7


def test_an_unknown_way_is_refused_before_an_engine_starts(fake_engines: list[dict[str, Any]]) -> None:
    done = run("bench", "--way", "nonesuch")
    assert (done.exit_code, fake_engines) == (2, [])
    assert "there is no policy 'nonesuch'" in done.stderr
