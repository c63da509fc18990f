"""Who the slowest are."""

from __future__ import annotations

from benchmarks.policies.tail import Answered, answered, parts_table
from stream2llm_rag.simulation.grid import Generated, Machine
from stream2llm_rag.simulation.records import RequestRecord
from stream2llm_rag.simulation.trace import Chunk, Query


def test_what_is_missing_are_tokens_before_the_last_piece_without_kv():
    query = Query("a", 0.0, (Chunk(0.0, 300), Chunk(5.0, 100)))
    assert Answered(RequestRecord("a", 0.0, 5.0, 400, num_overlap=250), query).num_missing == 50
    assert Answered(RequestRecord("a", 0.0, 5.0, 400, num_overlap=300), query).num_missing == 0


def test_the_table_tells_the_slowest_from_the_others():
    machine = Machine(pool=0.1)
    requests = answered(Generated("crawler", 4, 1, 100).trace(0), machine, "density")
    assert [one.record.ttft_s for one in requests] == sorted(one.record.ttft_s for one in requests)
    lines = parts_table(requests, machine).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| all",
        "| the middle tenth",
        "| P95 to P99",
        "| the slowest 1%",
    ]
    slowest, median = (float(lines[index].split(" | ")[1]) for index in (-1, 2))
    assert slowest > median
