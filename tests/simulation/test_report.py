from __future__ import annotations

import csv
import io
import json
import math
import sys

import pytest

from stream2llm_rag.errors import MissingExtraError
from stream2llm_rag.simulation.report import Interval, compare, interval, ratio, to_csv, to_json
from tests.simulation.samples import sample_run

NEVER = math.inf
RUNS = [
    sample_run("ns", [1.0, 4.0], seed=0),
    sample_run("ns", [2.0, 8.0], seed=1),
    sample_run("ns", [4.0, 8.0], seed=2),
    sample_run("fcfs", [0.5, 1.0], seed=0),
    sample_run("fcfs", [0.5, 2.0], seed=1),
    sample_run("fcfs", [0.5, 4.0], seed=2),
]


def rows(runs, default="fcfs"):
    return {row.frontend: row for row in compare(runs, default)}


def test_a_row_has_medians_over_seeds():
    row = rows(RUNS)["ns"]
    assert (row.num_seeds, row.num_measured) == (3, 6)
    assert (row.ttft_s.p50, row.ttft_s.p99) == (pytest.approx(2.0), pytest.approx(8.0))
    assert row.arrival_to_first_token_s.p50 == pytest.approx(4.0)
    assert row.num_prompt_tokens == 2000


def test_a_speedup_is_the_median_of_those_of_each_seed():
    speedup = rows(RUNS)["fcfs"].speedup
    assert (speedup.p50, speedup.p99) == (pytest.approx(4.0), pytest.approx(4.0))  # of 2, 4, 8 and of 4, 4, 2


def test_only_seeds_that_both_have_are_compared():
    row = rows([*RUNS[:3], sample_run("fcfs", [0.5, 1.0], seed=1), sample_run("fcfs", [0.1, 0.1], seed=9)])["fcfs"]
    assert row.num_seeds == 2
    assert row.speedup.p50 == pytest.approx(4.0)


def test_without_the_usual_way_there_is_no_speedup():
    assert rows(RUNS[3:])["fcfs"].speedup is None


def test_a_front_end_that_never_answers_is_no_times_sooner():
    row = rows([*RUNS, sample_run("native", [0.5, NEVER], seed=0)])["native"]
    assert (row.speedup.p50, row.speedup.p99) == (pytest.approx(2.0), 0.0)
    assert (row.num_deadlocked, row.num_unfinished, row.completion_s) == (1, 1, NEVER)
    assert row.to_default["p99"] == Interval(0.0, None, None) or row.to_default["p99"].mean == NEVER


def test_cells_are_compared_each_by_itself():
    runs = [*RUNS, sample_run("ns", [9.0], series="anns"), sample_run("fcfs", [3.0], series="anns")]
    [one] = [row for row in compare(runs, "fcfs") if row.cell == "anns, 4 QPS" and row.frontend == "fcfs"]
    assert one.speedup.p50 == pytest.approx(3.0)


def test_an_interval_is_students_on_the_logarithms_of_paired_ratios():
    found = interval([(2.0, 1.0), (8.0, 1.0), (4.0, 1.0)])
    half = 4.302653 * math.log(2) / math.sqrt(3)  # t of 2 degrees of freedom at 97.5%, deviation ln 2
    assert found.mean == pytest.approx(4.0)
    assert found.low == pytest.approx(4.0 * math.exp(-half), rel=1e-6)
    assert found.high == pytest.approx(4.0 * math.exp(half), rel=1e-6)
    assert not found.is_apart


def test_an_interval_on_one_side_of_one_is_apart():
    assert interval([(2.0, 1.0), (2.1, 1.0), (1.9, 1.0)]).is_apart
    assert not interval([(1.0, 1.0), (1.1, 1.0), (0.9, 1.0)]).is_apart


@pytest.mark.parametrize("pairs", [[(3.0, 1.0)], [(3.0, 1.0), (NEVER, 1.0), (3.0, 1.0)]])
def test_one_seed_or_an_infinite_one_gives_no_interval(pairs):
    assert interval(pairs) == Interval(pytest.approx(3.0), None, None)


def test_intervals_without_scipy_are_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(MissingExtraError, match=r"stream2llm-rag\[bench\]"):
        compare(RUNS, "fcfs")


def test_a_ratio_of_what_never_ends():
    assert (ratio(1.0, NEVER), ratio(NEVER, 1.0), ratio(3.0, 2.0)) == (0.0, NEVER, 1.5)


def test_json_has_rows_and_runs_and_nothing_infinite():
    runs = [*RUNS, sample_run("native", [0.5, NEVER])]
    stored = json.loads(json.dumps(to_json(runs, "fcfs"), allow_nan=False))
    assert (stored["baseline"], stored["default_policy"]) == ("ns", "fcfs")
    assert [row["frontend"] for row in stored["rows"]] == ["ns", "fcfs", "native"]
    assert stored["rows"][2]["ttft_s"]["p99"] is None
    assert len(stored["runs"]) == 7


def test_csv_has_a_line_for_each_run():
    lines = list(csv.DictReader(io.StringIO(to_csv([*RUNS, sample_run("native", [0.5, NEVER])]))))
    assert len(lines) == 7
    assert (lines[0]["frontend"], lines[0]["seed"], lines[0]["ttft_s_p50"]) == ("ns", "0", "1.0")
    assert lines[6]["ttft_s_p99"] == ""
