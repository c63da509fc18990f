"""What is decided without an engine: ways, scripts, counts, steps, pools and scales."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.bench.cells import Cell, find_cell, pending_rounds, seconds_needed, ways_for
from stream2llm_rag.bench.ledger import Entry, append_entry, read_entries
from stream2llm_rag.bench.pace import StallWatch
from stream2llm_rag.bench.pooling import pool_rounds
from stream2llm_rag.bench.replay import Round
from stream2llm_rag.bench.rounds import RoundSettings
from stream2llm_rag.bench.scaling import Scale, Speed, load, same_load, scale_trace
from stream2llm_rag.bench.script import write_scripts
from stream2llm_rag.bench.sighting import Sighting
from stream2llm_rag.bench.steps import Step, StepLog
from stream2llm_rag.bench.ways import DEFAULT, NATIVE, NON_STREAMING, Way, WayKind, every_way, parse_way, round_order
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.records import RequestRecord, summarise
from stream2llm_rag.simulation.step_time import StepTime
from stream2llm_rag.simulation.trace import Chunk, Query
from stream2llm_rag.simulation.workloads import anns, crawler

from .fakes import query

VOCABULARY = range(5, 2000)


def test_every_way_is_read_by_its_name() -> None:
    assert [parse_way(way.name) for way in every_way()] == list(every_way())
    assert parse_way("lcas+hints") == Way(WayKind.STREAMING, "lcas", hints=True)


@pytest.mark.parametrize("name", ["nonesuch", "ns+hints", "native+hints", ""])
def test_a_name_of_no_way_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_way(name)


def test_the_order_of_ways_turns_round_with_every_trace() -> None:
    assert [way.name for _, way in round_order([NON_STREAMING, NATIVE], 3)] == ["ns", "native", "native", "ns", "ns", "native"]


def test_a_prompt_keeps_what_an_update_keeps_and_nothing_else() -> None:
    [script] = write_scripts([query("a", (50, None), (30, 20), (10, None))], VOCABULARY)
    first, second, third = (script.prompt(index) for index in range(3))
    assert second[:20] == first[:20]
    assert second[20] != first[20]
    assert third == script.final_prompt
    assert (third[:50], third[50:]) == (second, script.chunks[2])


def test_scripts_are_the_same_each_time_and_share_no_block() -> None:
    trace = crawler(20, 4.0)
    scripts = write_scripts(trace, VOCABULARY, salt="x")
    assert write_scripts(trace, VOCABULARY, salt="x") == scripts
    others = write_scripts(trace, VOCABULARY, salt="y")
    blocks = [tuple(script.final_prompt[:16]) for script in (*scripts, *others)]
    assert len(set(blocks)) == 40
    assert {token for script in scripts for token in script.final_prompt} <= set(VOCABULARY)


def seen(asked: Query, *records: StepRecord) -> RequestRecord:
    sighting = Sighting(asked, started_s=100.0)
    for record in records:
        sighting.take(record)
    return sighting.record()


def record(kind: StepKind, num_tokens: int, at_s: float) -> StepRecord:
    return StepRecord("a", kind, at_s, at_s, num_tokens)


def test_what_a_request_cost_is_counted() -> None:
    asked = Query("a", 0.0, (Chunk(1.0, 100), Chunk(5.0, 20)))
    found = seen(
        asked,
        record(StepKind.COMPUTED, 99, 101.0),
        record(StepKind.EVICTED, 50, 102.0),
        record(StepKind.RESUMED, 16, 103.0),
        record(StepKind.COMPUTED, 20, 104.0),
        record(StepKind.COMPUTED, 35, 106.0),
    )
    assert (found.num_computed, found.num_cached, found.num_evicted, found.num_evictions) == (154, 16, 50, 1)
    assert found.num_overlap == 85, "what was held at second 5; the last step came after it"
    assert not found.is_finished
    assert found.ttft_s == math.inf


def test_overlap_is_of_the_final_prompt() -> None:
    asked = Query("a", 0.0, (Chunk(1.0, 100), Chunk(5.0, 80, num_kept=30)))
    found = seen(asked, record(StepKind.COMPUTED, 99, 101.0), record(StepKind.INVALIDATED, 69, 105.5))
    assert (found.num_overlap, found.num_invalidated) == (30, 69)


def test_a_request_that_makes_way_loses_what_its_successor_does_not_keep() -> None:
    sighting = Sighting(Query("a", 0.0, (Chunk(1.0, 100), Chunk(5.0, 80, num_kept=30))), started_s=100.0)
    sighting.take(record(StepKind.COMPUTED, 100, 101.0))
    sighting.replaced(30)
    sighting.take(record(StepKind.COMPUTED, 110, 106.0))
    found = sighting.record()
    assert (found.num_invalidated, found.num_overlap, found.num_computed) == (70, 0, 210)


def test_an_answer_ends_with_its_last_token() -> None:
    sighting = Sighting(query("a", (5, None), num_output_tokens=3), started_s=0.0)
    sighting.take_tokens([7], 2.0)
    sighting.take_tokens([7, 7], 4.0)
    found = sighting.record()
    assert (found.first_token_s, found.finished_s, found.num_output_tokens) == (2.0, 4.0, 3)


def test_the_steps_of_a_core_are_put_together_again() -> None:
    log = StepLog()
    for request_id, kind, started_s, ended_s, num_tokens in [
        ("a", StepKind.COMPUTED, 1.0, 2.0, 100),
        ("b", StepKind.COMPUTED, 1.0, 2.0, 10),
        ("a", StepKind.INVALIDATED, 2.0, 2.0, 40),
        ("a", StepKind.COMPUTED, 2.5, 4.0, 30),
        ("b", StepKind.EVICTED, 4.0, 4.0, 10),
        ("b", StepKind.RESUMED, 4.0, 4.0, 4),
        ("b", StepKind.COMPUTED, 3.5, 5.0, 6),  # planned before the last one had ended
    ]:
        log.take(StepRecord(request_id, kind, started_s, ended_s, num_tokens))
    assert log.steps() == [Step(((100, 0), (10, 0)), 1.0), Step(((30, 60),), 1.5, gap_s=0.5), Step(((6, 4),), 1.0)]


def test_an_engine_stands_still_only_while_somebody_waits() -> None:
    watch = StallWatch(limit_s=5.0)
    watch.saw_progress(1.0)
    assert watch.stalls_at() is None
    watch.expect("a", 10.0)
    watch.expect("b", 12.0)
    assert watch.stalls_at() == 15.0
    watch.saw_progress(14.0)
    assert watch.stalls_at() == 19.0
    watch.saw_end("a")
    watch.saw_end("b")
    assert watch.stalls_at() is None


def answered(name: str, arrival_s: float, ttft_s: float = 1.0) -> RequestRecord:
    first_s = arrival_s + 1.0 + ttft_s
    return RequestRecord(name, arrival_s, arrival_s + 1.0, 10, first_s, first_s, 1, 10)


def test_one_round_alone_is_summed_up_as_any_run() -> None:
    records = [answered(str(index), index / 3, ttft_s=index % 7 + 1) for index in range(40)]
    assert pool_rounds([records], trim_s=2.0, min_for_p99=1) == summarise(records, trim_s=2.0)


def test_rounds_are_trimmed_each_for_itself_and_their_seconds_add_up() -> None:
    rounds = [[answered(str(index), float(index)) for index in range(10)] for _ in range(2)]
    pooled = pool_rounds(rounds, trim_s=2.0)
    assert (pooled.num_requests, pooled.num_measured, pooled.completion_s) == (20, 12, 22.0)
    assert pooled.throughput_rps == pytest.approx(20 / 22)


def test_a_p99_of_few_requests_is_not_given() -> None:
    records = [answered(str(index), float(index)) for index in range(999)]
    assert math.isnan(pool_rounds([records]).ttft_s.p99)
    assert pool_rounds([[*records, answered("last", 1e3)]]).ttft_s.p99 == 1.0


def test_what_never_finished_is_pooled_as_infinite() -> None:
    never = RequestRecord("never", 0.0, 1.0, 10)
    pooled = pool_rounds([[never]], stalled=True)
    assert (pooled.ttft_s.p50, pooled.completion_s, pooled.throughput_rps, pooled.deadlocked) == (math.inf, math.inf, 0.0, True)


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0.001, 1),
    st.floats(0.01, 10),
)
def test_a_scaled_query_is_valid_and_in_proportion(pieces: list[tuple[int, float]], tokens: float, time: float) -> None:
    chunks, length = [], 0
    for number, (num_tokens, kept) in enumerate([*pieces, (32, 1.0)]):
        num_kept = None if number % 2 else max(int(kept * length), min(length, 1))
        chunks.append(Chunk(float(number), num_tokens, num_kept))
        length = (length if num_kept is None else num_kept) + num_tokens
    asked = Query("a", 3.0, tuple(chunks))
    [scaled] = scale_trace((asked,), Scale(tokens, time))
    assert scaled.final_s == pytest.approx(asked.final_s * time)
    assert scaled.num_prompt_tokens == pytest.approx(asked.num_prompt_tokens * tokens, abs=len(chunks) + 1)
    assert [chunk.num_kept is None for chunk in scaled.chunks] == [chunk.num_kept is None for chunk in asked.chunks]


@pytest.mark.parametrize("workload", [crawler, anns])
def test_a_workload_loads_a_slow_machine_as_it_loads_the_one_it_was_made_for(workload: object) -> None:
    trace = workload(200, 3.0)  # type: ignore[operator]
    made_for = Speed(StepTime(0.004, 1.4e-5, 5e-10), 2048)
    slow = Speed(StepTime(0.01, 1e-4, 3e-8), 256)
    scale = same_load(trace, 1 / 8, made_for, slow)
    assert load(scale_trace(trace, scale), slow) == pytest.approx(load(trace, made_for))


def entry(index: int, way: Way = NON_STREAMING) -> Entry:
    done = Round(way, (answered("a", 0.0), RequestRecord("b", 0.5, 1.0, 10)), {}, (), (0.1, 0.3, 0.2), 4.0, stalled=True)
    return Entry.of(index, done, {"gpu": "some"})


def test_rounds_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cell.jsonl"
    written = [entry(0), entry(0, NATIVE), entry(1)]
    for one in written:
        append_entry(path, one)
    assert read_entries(path) == written
    assert written[0].lateness_s == (0.2, 0.3)
    assert read_entries(tmp_path / "none.jsonl") == []


def test_a_line_that_was_cut_short_is_measured_again_and_any_other_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    append_entry(path, entry(0))
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert read_entries(path) == [entry(0)]
    path.write_text(whole[:40] + "\n" + whole)
    with pytest.raises(InvalidInputError, match="line 1 is no round"):
        read_entries(path)


def test_what_is_pending_is_what_is_not_there() -> None:
    cell = Cell("c", "crawler", 4.0, 1.0, 100, 2048, 8192, requests_per_round=30, num_rounds=2, trim_s=0.0)
    pending = pending_rounds(cell, [NON_STREAMING, NATIVE], [entry(0), entry(1, NATIVE)])
    assert pending == [(0, NATIVE), (1, NON_STREAMING)]
    assert find_cell("c", [cell]) is cell
    with pytest.raises(InvalidInputError, match=r"no cell 'd'\. Write one of c"):
        find_cell("d", [cell])


def test_only_engines_are_started_that_have_a_round_in_the_time() -> None:
    cell = Cell("c", "crawler", 4.0, 1.0, 100, 2048, 8192, requests_per_round=30, num_rounds=2, trim_s=0.0)
    settings, ours = RoundSettings(VOCABULARY, stall_limit_s=30.0), DEFAULT
    ways, round_s = [NON_STREAMING, NATIVE, ours], seconds_needed(cell.trace(0), settings)

    def chosen(left_s: float, *entries: Entry) -> list[Way]:
        return ways_for(cell, ways, entries, settings, left_s=left_s, start_s=40.0)

    assert chosen(1.0) == [NON_STREAMING]
    assert chosen(40.0 + 2 * round_s) == [NON_STREAMING, NATIVE], "one engine serves both"
    assert chosen(60.0 + 3 * round_s) == [NON_STREAMING, NATIVE]
    assert chosen(81.0 + 3 * round_s) == ways
    assert chosen(1.0, entry(0), entry(0, NATIVE)) == [ours]
    assert chosen(1e9, *(entry(index, way) for index in range(2) for way in ways)) == []


def test_the_rounds_of_a_cell_have_traces_of_their_own_that_fit_the_model() -> None:
    cell = Cell("c", "crawler", 4.0, 1.0, 100, 2048, 8192, requests_per_round=100, num_rounds=2, trim_s=0.0)
    traces = [cell.trace(index) for index in range(2)]
    assert traces[0] != traces[1]
    assert cell.trace(0) == traces[0]
    assert all(query.num_prompt_tokens + query.num_output_tokens <= 8192 for trace in traces for query in trace)
    assert all(first.arrival_s <= second.arrival_s for trace in traces for first, second in pairwise(trace))
