from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.records import Percentiles, RequestRecord, percentile, summarise


def record(number: int, first_token_s: float = math.inf, **figures: int) -> RequestRecord:
    """One that arrives ``number`` seconds after the trace began; its context is final 2 seconds later."""
    return RequestRecord(f"q{number}", number, number + 2, 100, first_token_s, first_token_s, **figures)


def test_ttft_counts_from_the_final_context_and_not_from_the_question() -> None:
    one = record(1, 3.5)
    assert (one.ttft_s, one.arrival_to_first_token_s) == (0.5, 2.5)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert all(100 * sum(value <= other for value in values) < percent * len(values) for other in values if other < found)


@pytest.mark.parametrize(("percent", "values"), [(50, []), (0, [1.0]), (101, [1.0])])
def test_a_percentile_of_nothing_is_refused(percent: int, values: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="percentile"):
        percentile(values, percent)


def test_a_request_that_was_never_answered_counts_as_infinite() -> None:
    summary = summarise([*(record(i, i + 3) for i in range(94)), *(record(i) for i in range(94, 100))])
    assert summary.ttft_s == Percentiles(1.0, math.inf, math.inf)
    assert (summary.num_requests, summary.num_measured, summary.num_unfinished) == (100, 100, 6)
    assert summary.completion_s == math.inf
    assert summary.throughput_rps == 94 / 96


def test_trimming_leaves_out_who_arrives_early_or_late_and_only_from_the_percentiles() -> None:
    slow = {0: 90.0, 1: 80.0, 9: 70.0}
    records = [record(i, i + 2 + slow.get(i, 0.5), num_computed=100, num_evicted=3, num_evictions=1) for i in range(10)]
    summary = summarise(records, trim_s=2)
    assert summary.num_measured == 6
    assert summary.ttft_s == Percentiles(0.5, 0.5, 0.5)
    assert summarise(records).ttft_s == Percentiles(0.5, 90.0, 90.0)
    assert (summary.num_computed, summary.num_evicted, summary.num_evictions) == (1000, 30, 10)
    assert summary.completion_s == 92.0


@pytest.mark.parametrize("trim_s", [-1.0, math.inf, 5.0])
def test_trimming_that_leaves_nothing_is_refused(trim_s: float) -> None:
    with pytest.raises(InvalidInputError, match="trim_s"):
        summarise([record(i, i + 3) for i in range(10)], trim_s=trim_s)


def test_nothing_to_summarise_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\[0\] records"):
        summarise([])
