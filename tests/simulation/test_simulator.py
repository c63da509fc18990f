from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.building import CoreShape
from stream2llm_rag.simulation.frontends import Frontend, make_frontend
from stream2llm_rag.simulation.result import SimulationResult
from stream2llm_rag.simulation.simulator import simulate
from stream2llm_rag.simulation.trace import Chunk, Query

from .running import FIXED, OURS, SMALL, linear, one_second, random_trace


def plain(name: str, at_s: float, num_tokens: int, num_output_tokens: int = 1) -> Query:
    return Query(name, at_s, (Chunk(0, num_tokens),), num_output_tokens)


def run(name: str, *trace: Query, shape: CoreShape = SMALL) -> SimulationResult:
    """Steps of one second each."""
    return simulate(trace, make_frontend(name), one_second, shape)


class TestTheClock:
    """Every step takes a second and 16 tokens, so that all times can be told by hand."""

    @pytest.mark.parametrize("name", [*FIXED, *OURS])
    def test_a_plain_request_is_answered_a_token_a_step(self, name: str) -> None:
        [record] = run(name, plain("a", 2.0, 33, num_output_tokens=3)).records
        assert (record.first_token_s, record.finished_s) == (5.0, 7.0)
        assert (record.ttft_s, record.arrival_to_first_token_s) == (3.0, 3.0)
        assert (record.num_computed, record.num_overlap, record.num_output_tokens) == (35, 0, 3)

    def test_what_streams_is_computed_while_it_comes_but_for_the_last_token(self) -> None:
        query = Query("a", 1.0, (Chunk(0.5, 32), Chunk(9.0, 4)))
        usual, streamed = run("ns", query).records[0], run("fcfs", query).records[0]
        assert (usual.first_token_s, usual.num_overlap) == (13.0, 0)
        assert (streamed.first_token_s, streamed.num_overlap) == (11.0, 31)
        assert streamed.num_computed == usual.num_computed == 36

    @pytest.mark.parametrize(
        ("name", "num_overlap", "num_invalidated"), [("fcfs", 4, 11), ("vllm-s", 4, 11), ("native", 0, 16)]
    )
    def test_an_update_costs_what_it_replaced_or_all(self, name: str, num_overlap: int, num_invalidated: int) -> None:
        query = Query("a", 0.0, (Chunk(0.0, 16), Chunk(5.0, 36, 4)))
        [record] = run(name, query).records
        assert (record.num_overlap, record.num_invalidated) == (num_overlap, num_invalidated)
        assert record.num_computed == 40 + num_invalidated
        assert record.num_discarded == (name == "native")

    def test_what_comes_during_a_step_waits_for_its_end(self) -> None:
        trace = plain("a", 0.0, 4, num_output_tokens=4), plain("b", 0.5, 4)
        synchronous, pipelined = (run("ns", *trace, shape=replace(SMALL, depth=depth)).records for depth in (1, 2))
        assert [record.finished_s for record in synchronous] == [4.0, 2.0]
        # Of "a", the second step was scheduled when the first began, and runs before that of "b".
        assert [record.finished_s for record in pipelined] == [4.0, 3.0]

    def test_time_passes_over_silence(self) -> None:
        result = run("fcfs", plain("a", 0.0, 4), plain("b", 1e6, 4))
        assert result.records[1].finished_s == 1e6 + 1
        assert (result.engine.num_steps, result.engine.busy_s, result.engine.stalled_s) == (2, 2.0, 0.0)

    def test_chunks_that_change_nothing_cost_no_step(self) -> None:
        query = Query("a", 0.0, (Chunk(0.0, 0), Chunk(1.0, 8), Chunk(2.0, 0), Chunk(3.0, 0, 8), Chunk(4.0, 8)))
        assert [run(name, query).engine.num_steps for name in ("ns", "native", "vllm-s", "fcfs")] == [1, 2, 2, 2]

    @pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
    def test_a_step_time_under_which_time_would_not_pass_is_refused(self, seconds: float) -> None:
        with pytest.raises(InvalidInputError, match="step_time gave"):
            simulate([plain("a", 0.0, 4)], make_frontend("ns"), lambda items: seconds, SMALL)


class TestDeadlock:
    """Sixteen blocks hold 64 tokens; three streams park 20 tokens each, and want 20 more."""

    shape = replace(SMALL, num_blocks=17)
    streams = tuple(Query(name, 0.0, (Chunk(at_s, 20), Chunk(9 + at_s, 20))) for name, at_s in [("a", 0), ("b", 1), ("c", 2)])

    def test_vllm_streaming_stands_still_and_its_requests_are_infinitely_late(self) -> None:
        result = run("native", *self.streams, plain("d", 12.0, 8), shape=self.shape)
        assert result.summary.deadlocked
        assert result.engine.deadlocked_at_s == 12.0
        assert result.summary.num_unfinished == 4
        assert {record.ttft_s for record in result.records} == {math.inf}
        assert result.summary.ttft_s.p50 == result.summary.completion_s == math.inf

    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("name", [*OURS, "ns", "vllm-s"])
    def test_all_others_answer(self, name: str, depth: int) -> None:
        result = run(name, *self.streams, plain("d", 12.0, 8), shape=replace(self.shape, depth=depth))
        assert not result.summary.deadlocked
        assert result.summary.num_unfinished == 0

    def test_waiting_for_the_next_arrival_with_work_that_cannot_run_is_a_stall(self) -> None:
        blocked = plain("d", 5.0, 30)
        stalled, ours = (run(name, *self.streams, blocked, shape=self.shape) for name in ("vllm-s", "fcfs"))
        assert stalled.engine.stalled_s > 3.0
        assert ours.engine.stalled_s == 0.0
        assert ours.records[3].ttft_s < 3.0 < stalled.records[3].ttft_s
        assert ours.summary.num_evictions > 0


class TestVllmS:
    def test_who_was_admitted_last_is_preempted_first_also_when_it_only_waits_for_its_next_chunk(self) -> None:
        early = Query("early", 0.0, (Chunk(0, 20), Chunk(9, 20)))
        late = Query("late", 0.0, (Chunk(1, 20), Chunk(20, 4)))
        result = run("vllm-s", early, late, shape=replace(SMALL, num_blocks=13, max_model_len=48))
        assert [record.num_evictions for record in result.records] == [0, 1]
        assert result.engine.num_preemptions == 1

    def test_a_stream_of_one_token_does_not_hold_up_who_comes_behind(self) -> None:
        stream = Query("a", 0.0, (Chunk(0, 1), Chunk(9, 20)))
        result = run("vllm-s", stream, plain("b", 1.0, 8))
        assert [record.finished_s for record in result.records] == [11.0, 2.0]
        assert result.engine.stalled_s == 0.0

    def test_it_has_no_prefix_cache(self) -> None:
        with pytest.raises(InvalidInputError, match="prefix_caching=False"):
            run("vllm-s", plain("a", 0.0, 4), shape=replace(SMALL, prefix_caching=True))


def test_a_prefix_cache_gives_back_what_an_eviction_took() -> None:
    first = Query("a", 0.0, (Chunk(0, 40), Chunk(30, 4)))
    shape = replace(SMALL, num_blocks=17)
    without, with_cache = (
        run("fcfs", first, plain("b", 5.0, 30), shape=replace(shape, prefix_caching=on)).records[0] for on in (False, True)
    )
    assert without.num_evictions == with_cache.num_evictions == 1
    assert (without.num_cached, with_cache.num_cached > 0) == (0, True)
    assert with_cache.num_computed == without.num_computed - with_cache.num_cached


def test_a_hint_reaches_the_policy() -> None:
    seen: list[tuple[str, int | None]] = []

    class Spy(POLICIES["fcfs"]):  # type: ignore[misc]
        def saw_chunk(self, request_id: str, now: float, num_tokens: int, num_remaining: int | None) -> None:
            seen.append((request_id, num_remaining))

    query = Query("a", 0.0, (Chunk(0, 4), Chunk(1, 4), Chunk(2, 4), Chunk(3, 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POLICIES, "spy", Spy)
        run("spy+hints", query)
        run("spy", query)
    assert seen == [("a", 3), ("a", 2), ("a", 1), ("a", None), ("a", None), ("a", None)]


def test_a_policy_sees_virtual_time() -> None:
    times: list[tuple[float, float]] = []

    class Spy(POLICIES["fcfs"]):  # type: ignore[misc]
        def rank(self, request, now):  # type: ignore[no-untyped-def]
            times.append((now, request.last_chunk_at))
            return super().rank(request, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POLICIES, "spy", Spy)
        run("spy", Query("a", 100.0, (Chunk(0, 40), Chunk(1.5, 4))), plain("b", 100.5, 40))
    assert (100.0, 100.0) in times
    assert all(100.0 <= last_chunk_at <= now <= 110.0 for now, last_chunk_at in times)


@pytest.mark.parametrize(
    ("query", "shape"),
    [
        (plain("long", 0.0, 60, num_output_tokens=5), SMALL),
        (plain("long", 0.0, 40), replace(SMALL, num_blocks=11)),
        (Query("long", 0.0, (Chunk(0, 70), Chunk(1, 4, 8))), SMALL),
    ],
)
def test_a_query_that_cannot_be_served_at_all_is_refused(query: Query, shape: CoreShape) -> None:
    with pytest.raises(InvalidInputError, match="query long has"):
        run("fcfs", query, shape=shape)


@pytest.mark.parametrize("settings", [{"num_blocks": 1}, {"token_budget": 4}, {"depth": 0}, {"depth": 3, "v2_runner": False}])
def test_a_shape_that_no_core_has_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="Write"):
        replace(SMALL, **settings)  # type: ignore[arg-type]


def test_front_ends_are_made_by_name() -> None:
    names = [*FIXED, *OURS, "stream2llm_rag.engine.policy.paper:Lcas+hints"]
    made = [make_frontend(name) for name in names]
    assert [frontend.name for frontend in made] == names
    assert all(isinstance(frontend, Frontend) for frontend in made)
    with pytest.raises(InvalidInputError, match="no front end 'fastest'"):
        make_frontend("fastest")


def as_bytes(name: str, depth: int) -> str:
    shape = replace(SMALL, depth=depth, prefix_caching=name != "vllm-s")
    results = [simulate(random_trace(seed), make_frontend(name), linear, shape) for seed in range(3)]
    return json.dumps([{k: v for k, v in asdict(result).items() if k != "wall"} for result in results])


def test_the_same_inputs_give_the_same_result_in_every_process() -> None:
    """Byte for byte, also where Python hashes strings differently."""
    cases = [("native", 1), ("vllm-s", 2), ("tail-fcfs", 1), ("fcfs+hints", 2)]
    code = f"from {__name__} import as_bytes; print([as_bytes(*case) for case in {cases}])"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.splitlines()[-1] == str([as_bytes(*case) for case in cases])


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "ns",
        "native",
        "vllm-s",
        "fcfs",
        "fcfs+hints",
    ]
