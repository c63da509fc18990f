from __future__ import annotations

import json
import math

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.records import between, summarise
from stream2llm_rag.simulation.runs import EXCEEDING, Run
from tests.simulation.samples import records, sample_run

NEVER = math.inf


def test_a_distribution_has_what_each_share_of_the_requests_reaches():
    run = sample_run("ns", [number / 100 for number in range(1, 1001)])
    for share, ttft_s in zip(EXCEEDING, run.ttft_s, strict=True):
        reached = sum(number / 100 >= ttft_s - 1e-9 for number in range(1, 1001)) / 1000
        assert reached == pytest.approx(share, abs=0.0011)
    assert (run.ttft_s[0], run.ttft_s[-1]) == (pytest.approx(0.01), pytest.approx(9.99))


def test_a_run_is_read_from_the_json_that_it_gave():
    run = sample_run("density+hints", [0.25, NEVER, 1.5], seed=3, num_invalidated=7)
    again = Run.from_json(json.loads(json.dumps(run.to_json(), allow_nan=False)))
    assert again.to_json() == run.to_json()
    assert again == Run.from_json(again.to_json())
    assert again.summary.ttft_s == run.summary.ttft_s
    assert (again.ttft_s, again.num_invalidated) == (run.ttft_s, run.num_invalidated)
    assert again.summary.completion_s == NEVER
    assert again.summary.deadlocked
    assert again.cell == "crawler, pool 1, 4 QPS"


def test_a_run_without_a_rate_is_called_by_what_it_is():
    assert sample_run("ns", [1.0], qps=None, series="mine.jsonl").cell == "mine.jsonl"


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("seed"),
        lambda stored: stored["summary"].pop("num_computed"),
        lambda stored: stored["summary"]["ttft_s"].update(p42=1.0),
    ],
)
def test_json_that_is_no_run_is_refused(change):
    stored = sample_run("ns", [1.0]).to_json()
    change(stored)
    with pytest.raises(InvalidInputError, match="this is no"):
        Run.from_json(stored)


@pytest.mark.parametrize("trim_s", [0.0, 1.0, 2.5, 4.0])
def test_between_leaves_what_a_summary_measures(trim_s):
    found = records([float(number) for number in range(10)])
    summary = summarise(found, trim_s=trim_s)
    left = between(found, trim_s)
    assert len(left) == summary.num_measured
    assert sorted(record.ttft_s for record in left)[-1] == pytest.approx(summary.ttft_s.p99)
