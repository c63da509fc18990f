"""What the load alone says of how fast an answer can come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.paper.limits import last_piece_s, limits
from stream2llm_rag.simulation.frontends import make_frontend
from stream2llm_rag.simulation.grid import Generated, Machine
from stream2llm_rag.simulation.simulator import simulate
from stream2llm_rag.simulation.step_time import StepTime
from stream2llm_rag.simulation.trace import Chunk, Query

MACHINE = Machine(token_budget=100)
MACHINE = replace(MACHINE, hardware=replace(MACHINE.hardware, step_time=StepTime(1.0, 0.01, kv_read_s=0.001)))


def test_the_last_piece_is_computed_in_full_steps_behind_what_stays():
    appended = Query("a", 0.0, (Chunk(0.0, 50), Chunk(1.0, 250)))
    updated = Query("b", 1.0, (Chunk(0.0, 300), Chunk(1.0, 10, num_kept=40)))
    found = limits((appended, updated), MACHINE)
    assert found.last_piece_s.p99 == pytest.approx(3 * 1.0 + 250 * 0.01 + (50 + 150 + 250) * 0.001)
    assert found.last_piece_s.p50 == pytest.approx(1.0 + 10 * 0.01 + 40 * 0.001)


def test_what_is_found_counts_for_as_long_as_the_context_is_not_final():
    growing = Query("a", 0.0, (Chunk(2.0, 100), Chunk(5.0, 50), Chunk(9.0, 1)))
    later = Query("b", 10.0, (Chunk(0.0, 7),))
    assert limits((growing, later), MACHINE).num_found == pytest.approx((100 * 3 + 150 * 4) / 10)


def test_no_request_is_answered_sooner_than_the_limit():
    machine, trace = Machine(), Generated("crawler", 1, 1, 60).trace(seed=0)
    found = simulate(trace, make_frontend("density"), machine.hardware.step_time, machine.shape())
    ttfts_s = {record.query_id: record.ttft_s for record in found.records}
    assert len(ttfts_s) == 60
    for query in trace:
        assert ttfts_s[query.query_id] >= last_piece_s(query, machine) * (1 - 1e-9)
