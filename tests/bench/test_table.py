from __future__ import annotations

import math

from stream2llm_rag.bench.pooling import pool_rounds
from stream2llm_rag.bench.table import HEADINGS, text_table
from stream2llm_rag.simulation.records import RequestRecord
from stream2llm_rag.simulation.report import compare
from stream2llm_rag.simulation.runs import Run


def run(name: str, ttft_s: float) -> Run:
    records = [RequestRecord(str(n), n, n + 1.0, 10, n + 1 + ttft_s, n + 1 + ttft_s, 1, 20) for n in range(9)]
    summary = pool_rounds([records], stalled=math.isinf(ttft_s))
    return Run.of("cell", None, name, 0, records, summary)


def test_a_table_shows_what_there_is_and_a_dash_for_what_there_is_not() -> None:
    lines = text_table(compare([run("ns", 0.5), run("density", 0.125), run("native", math.inf)])).splitlines()
    assert lines[0].split()[0] == HEADINGS[0]
    assert "0.125 0.125 -" in lines[2]
    assert "4 4 -" in lines[2], "times as soon as the usual way; no P99 of nine requests"
    assert lines[3].endswith("stalled")
    assert "inf inf -" in lines[3]
    assert lines[1].index("0.5 0.5") == lines[2].index("0.125 0.125"), "columns stand below each other"
