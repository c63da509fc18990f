from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import IndexBuildError, IndexFormatError, InvalidInputError
from stream2llm_rag.retrievers.diskann import DiskANNIndex, Snapshot, Thresholds
from stream2llm_rag.retrievers.diskann.calibration import Calibration, Judgement, Row, fit, judge
from stream2llm_rag.retrievers.diskann.search import SearchParameters
from stream2llm_rag.retrievers.diskann.stability import Gate

from .conftest import Built, clustered


def snapshot(
    ids: Sequence[int], slack: float | Sequence[float] = 5.0, age: int = 9, progress: float = 0.6, *, is_final: bool = False
) -> Snapshot:
    slacks = [slack] * len(ids) if isinstance(slack, float) else slack
    num_reads = round(100 * progress)
    return Snapshot(
        tuple(ids),
        tuple(map(float, range(len(ids)))),
        tuple(slacks),
        (age,) * len(ids),
        num_reads,
        num_reads // 4,
        progress,
        is_final,
    )


def test_a_document_is_stable_from_all_three_thresholds_on() -> None:
    thresholds = Thresholds(slack=1.0, age=3, progress=0.25)
    assert thresholds.stable_ids(snapshot([1, 2, 3], [3.0, 1.0, 0.9])) == [1, 2]
    assert thresholds.stable_ids(snapshot([1], age=2)) == []
    assert thresholds.stable_ids(snapshot([1], progress=0.24)) == []
    assert thresholds.stable_ids(snapshot([1], -5.0, 0, 0.0, is_final=True)) == [1]


def test_the_gate_shows_what_is_stable_when_that_changes() -> None:
    gate = Gate(Thresholds())
    assert gate.pass_on(snapshot([1, 2], [2.0, 0.0])) == (1,)
    assert gate.pass_on(snapshot([3, 1, 2], [0.0, 2.0, 0.0])) is None
    assert gate.pass_on(snapshot([3, 1, 2], [2.0, 2.0, 0.0])) == (3, 1)


def test_what_was_shown_stays_until_it_leaves_the_top_k() -> None:
    gate = Gate(Thresholds())
    assert gate.pass_on(snapshot([1, 2], 2.0)) == (1, 2)
    assert gate.pass_on(snapshot([1, 2], 0.0)) is None
    assert gate.pass_on(snapshot([1, 3], 0.0)) == (1,)


def test_eager_shows_the_whole_top_k_and_final_nothing_before_the_end() -> None:
    eager, final = Gate(Thresholds(), "eager"), Gate(Thresholds(), "final")
    early, later, last = snapshot([1, 2], 0.0, 0, 0.1), snapshot([1, 2], 0.0, 0, 0.3), snapshot([1, 4], is_final=True)
    assert [eager.pass_on(each) for each in (early, later, later, last)] == [None, (1, 2), None, (1, 4)]
    assert [final.pass_on(each) for each in (early, later, last)] == [None, None, (1, 4)]


@given(
    st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=5, unique=True), min_size=1, max_size=8),
    st.sampled_from(["stable", "eager", "final"]),
)
def test_the_last_that_is_shown_is_always_the_whole_result(tops: list[list[int]], emit: str) -> None:
    gate = Gate(Thresholds(), emit)  # type: ignore[arg-type]
    shown = [gate.pass_on(snapshot(ids, is_final=number == len(tops))) for number, ids in enumerate(tops, 1)]
    assert shown[-1] == tuple(tops[-1])
    assert all(set(ids or ()) <= set(top) for ids, top in zip(shown, tops, strict=True))


def test_a_search_reports_progress_slack_and_age_that_fit_what_it_found(index: DiskANNIndex, built: Built) -> None:
    for query in built.queries[:20]:
        trace = index.trace(query, top_k=10, complexity=80)
        assert [s.is_final for s in trace] == [False] * (len(trace) - 1) + [True]
        assert trace[-1] == index.nearest(query, top_k=10, complexity=80)
        for one, other in pairwise(trace):
            assert one.num_reads < other.num_reads or other.is_final
            assert one.progress <= other.progress <= 1
            kept = [id_ for id_ in one.ids if id_ in other.ids]
            assert [id_ for id_ in other.ids if id_ in one.ids] == kept  # exact distances: the order stands
            assert all(other.age[other.ids.index(i)] >= one.age[one.ids.index(i)] for i in kept)
        for each in trace:
            assert list(each.slack) == sorted(each.slack, reverse=True)
            assert all(slack <= 9 - rank for rank, slack in enumerate(each.slack))
        assert trace[-1].slack == tuple(range(9, -1, -1))  # nobody is left to overtake


@pytest.mark.parametrize("top_k", [5, 10])
def test_most_of_what_is_shown_early_stays(built: Built, top_k: int) -> None:
    queries = clustered(200, 32, seed=5)
    with DiskANNIndex.open(built.directory, reader="memory") as index:
        traces = [index.trace(query, top_k=top_k, complexity=80) for query in queries]
    judgement = judge(traces, Thresholds())
    assert judgement.precision >= 0.95
    assert judgement.shown_at_half >= 0.3


def test_calibration_is_stored_beside_the_index_and_used(copied: Built) -> None:
    queries = clustered(60, 32, seed=3)
    with DiskANNIndex.open(copied.directory) as index:
        assert index.thresholds() == Thresholds()
        [row] = index.calibrate(queries, complexities=[60], precision=0.95).rows
        assert row.num_queries == 30
        assert index.thresholds(complexity=70) == row.thresholds
        assert index.thresholds(top_k=3, complexity=60) == Thresholds()
    with DiskANNIndex.open(copied.directory) as again:
        assert again.calibration.rows == (row,)
        again.calibrate(queries, complexities=[60, 120])
        assert [each.complexity for each in again.calibration.rows] == [60, 120]


def test_a_calibration_that_cannot_be_stored_is_said_and_holds_until_the_index_is_closed(copied: Built) -> None:
    (copied.directory / "calibration.new").mkdir()
    with DiskANNIndex.open(copied.directory) as index:
        with pytest.raises(IndexBuildError, match=r"calibration\.json cannot be written"):
            index.calibrate(clustered(60, 32, seed=3), complexities=[60])
        [row] = index.calibration.rows
        assert index.thresholds(complexity=60) == row.thresholds


def test_fitting_takes_the_earliest_thresholds_with_the_wanted_precision() -> None:
    right = [snapshot([1, 2], 0.3, 1, 0.2), snapshot([1, 2], 2.0, 9, 0.7), snapshot([1, 2], progress=1.0, is_final=True)]
    wrong = [snapshot([8, 9], 0.3, 1, 0.2), snapshot([1, 2], 2.0, 9, 0.7), snapshot([1, 2], progress=1.0, is_final=True)]
    careless, careful = fit([right, wrong], 0.5), fit([right, wrong], 0.97)
    assert judge([right, wrong], careless).precision == 0.75
    assert judge([right, wrong], careless).shown_at_half == 0.5
    assert judge([right, wrong], careful).precision == 1.0
    assert judge([right, wrong], careful).earliness < judge([right, wrong], careless).earliness


@pytest.mark.parametrize(
    ("queries", "settings", "words"),
    [
        (np.ones((19, 32)), {}, "20 queries or more"),
        (np.ones(32), {}, "20 queries"),
        (np.ones((20, 32)), {"precision": 0}, "precision"),
    ],
)
def test_what_cannot_be_calibrated_with_is_refused(
    index: DiskANNIndex, queries: object, settings: dict[str, float], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        index.calibrate(queries, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2, "rows": []}', '{"version": 1, "rows": [{"top_k": 1}]}', "\x00"]
)
def test_a_damaged_calibration_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(IndexFormatError, match="no calibration"):
        Calibration.read(path)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    row = Row(10, 100, 4, Thresholds(0.5, 2, 0.1), Judgement(0.98, 0.7, 0.8), 40)
    Calibration((row,)).write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json").rows == (row,)
    assert Calibration((row,)).thresholds_for(SearchParameters(10, 500, 4)) == row.thresholds
