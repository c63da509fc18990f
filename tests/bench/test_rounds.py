"""How a round is driven: what each way sends, in which order ways run, and how a round ends that stands still."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stream2llm_rag.bench.cells import Cell, run_cell
from stream2llm_rag.bench.ledger import Entry, read_entries
from stream2llm_rag.bench.replay import replay
from stream2llm_rag.bench.rounds import RoundSettings, interleave
from stream2llm_rag.bench.script import write_scripts
from stream2llm_rag.bench.targets import Native, NonStreaming, Streaming
from stream2llm_rag.bench.ways import DEFAULT, NATIVE, NON_STREAMING
from stream2llm_rag.errors import EngineDied
from stream2llm_rag.simulation.trace import Chunk, Query

from .fakes import FakeStock, FakeStreams, query

VOCABULARY = range(5, 2000)
SETTINGS = RoundSettings(VOCABULARY, stall_limit_s=60.0)
APPENDED = query("a", (30, None), (0, None), (20, None), (5, None), num_output_tokens=2)
UPDATED = query("u", (30, None), (20, 10), (5, 25))


async def test_the_usual_way_sends_the_whole_prompt_once() -> None:
    stock, scripts = FakeStock(), write_scripts([APPENDED, UPDATED], VOCABULARY)
    done = await replay(NonStreaming(NON_STREAMING, stock), scripts, stall_limit_s=60.0)
    assert stock.heard == {"a": [scripts[0].final_prompt], "u": [scripts[1].final_prompt]}
    assert done.answers == {"a": (7, 7), "u": (7,)}
    assert [record.num_overlap for record in done.records] == [0, 0]
    assert (stock.listeners, stock.num_live, done.stalled) == ({}, 0, False)


async def test_native_streaming_sends_each_chunk_and_takes_only_what_follows_the_last_for_the_answer() -> None:
    stock, [script] = FakeStock(), write_scripts([APPENDED], VOCABULARY)
    done = await replay(Native(NATIVE, stock), [script], stall_limit_s=60.0)
    assert stock.heard["a"] == [chunk for chunk in script.chunks if chunk]
    assert done.answers == {"a": (7, 7)}
    [record] = done.records
    assert (record.num_discarded, record.num_computed, record.is_finished) == (2, 55, True)
    assert (stock.listeners, stock.num_live) == ({}, 0)


async def test_native_streaming_submits_an_update_anew() -> None:
    stock, [script] = FakeStock(), write_scripts([UPDATED], VOCABULARY)
    done = await replay(Native(NATIVE, stock), [script], stall_limit_s=60.0)
    assert stock.heard["u/2"] == [script.final_prompt]
    assert done.answers == {"u": (7,)}
    assert stock.num_live == 0


async def test_ours_streams_to_the_same_final_prompts() -> None:
    engine, scripts = FakeStreams(), write_scripts([APPENDED, UPDATED], VOCABULARY)
    done = await replay(Streaming(DEFAULT, engine), scripts, stall_limit_s=60.0)
    assert sorted(engine.prompts) == sorted(script.final_prompt for script in scripts)
    assert all(len(answer) == 1 for answer in done.answers.values())
    assert not engine.sessions


async def test_all_ways_have_their_turn_with_every_trace() -> None:
    stock, engine = FakeStock(), FakeStreams()
    targets = [NonStreaming(NON_STREAMING, stock), Native(NATIVE, stock), Streaming(DEFAULT, engine)]
    rounds = [(index, done.way.name) async for index, done in interleave(targets, [(APPENDED,), (UPDATED,)], SETTINGS)]
    ours = DEFAULT.name
    assert rounds == [(0, "ns"), (0, "native"), (0, ours), (1, ours), (1, "native"), (1, "ns")]
    assert engine.num_resets == 2, "no round finds prefixes of an earlier one"


async def test_an_engine_that_stands_still_ends_its_round_and_is_free_again() -> None:
    stock = FakeStock(num_slots=2)
    trace = tuple(query(name, (30, None), (5, None)) for name in "abcd")
    done = await replay(Native(NATIVE, stock), write_scripts(trace, VOCABULARY), stall_limit_s=0.05)
    assert (done.stalled, done.cut_off) == (True, False)
    assert sorted(record.is_finished for record in done.records) == [False, False, True, True]
    assert sum(record.ttft_s == float("inf") for record in done.records) == 2
    assert (stock.num_live, stock.listeners) == (0, {})


async def test_an_idle_engine_does_not_stand_still() -> None:
    asked = Query("late", 0.0, (Chunk(0.0, 10), Chunk(0.3, 5)))
    done = await replay(Native(NATIVE, FakeStock()), write_scripts([asked], VOCABULARY), stall_limit_s=0.05)
    assert (done.stalled, done.records[0].is_finished) == (False, True)


async def test_a_round_whose_time_is_up_is_cut_off() -> None:
    asked = Query("far", 0.0, (Chunk(0.0, 10), Chunk(3600.0, 5)))
    engine = FakeStreams()
    scripts = write_scripts([APPENDED, asked], VOCABULARY)
    done = await replay(Streaming(DEFAULT, engine), scripts, stall_limit_s=60.0, time_limit_s=0.05)
    assert (done.stalled, done.cut_off) == (False, True)
    assert [record.is_finished for record in done.records] == [False, False], "the fake one answers one token of two"
    assert not engine.sessions


async def test_each_moment_of_the_trace_is_kept_and_how_late_is_told() -> None:
    asked = Query("a", 0.01, (Chunk(0.0, 10), Chunk(0.02, 5)))
    done = await replay(NonStreaming(NON_STREAMING, FakeStock()), write_scripts([asked], VOCABULARY), stall_limit_s=60.0)
    assert len(done.lateness_s) == 1
    assert done.lateness_s[0] >= 0
    assert done.records[0].ttft_s >= done.lateness_s[0], "the clock runs from the moment that was planned"


async def test_an_engine_that_dies_ends_the_round_with_its_own_error() -> None:
    engine = FakeStreams()
    engine.lifeline.die()
    with pytest.raises(EngineDied):
        await replay(Streaming(DEFAULT, engine), write_scripts([APPENDED], VOCABULARY), stall_limit_s=60.0)


async def test_a_cell_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "trace", lambda cell, index: (APPENDED, UPDATED))
    cell = Cell("c", "crawler", 4.0, 1.0, 100, 2048, 8192, requests_per_round=2, num_rounds=2, trim_s=0.0)
    target, told = NonStreaming(NON_STREAMING, FakeStock()), list[Entry]()

    async def run(ends_at: float) -> bool:
        return await run_cell(cell, [target], tmp_path, SETTINGS, ends_at=ends_at, machine={"on": "this"}, on_round=told.append)

    assert await run(ends_at=time.monotonic() + 1) is False
    assert told == []
    assert await run(ends_at=time.monotonic() + 600) is True
    assert [(entry.index, entry.way) for entry in read_entries(cell.path(tmp_path))] == [(0, "ns"), (1, "ns")]
    assert await run(ends_at=time.monotonic()) is True
    assert len(told) == 2
