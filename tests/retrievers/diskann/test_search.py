"""The search against the exact nearest, and against diskannpy-rust's over the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError, LifecycleError
from stream2llm_rag.retrievers.diskann import DiskANNIndex
from stream2llm_rag.retrievers.diskann import index as indexing
from stream2llm_rag.retrievers.diskann.metrics import METRICS, Space
from stream2llm_rag.retrievers.diskann.readers import open_reader, resident_share
from stream2llm_rag.retrievers.diskann.search import SearchParameters, Workspace
from stream2llm_rag.retrievers.diskann.state import NUM_CANDIDATES, NUM_READS, State

from .conftest import GRAPH, Built, clustered, exact

READERS = ("memory", "threads", *(("aio",) if sys.platform == "linux" else ()))


@pytest.mark.parametrize("metric", METRICS)
def test_with_many_candidates_the_nearest_are_the_exact_ones(build: Callable[..., Built], metric: str) -> None:
    built = build(metric)
    with DiskANNIndex.open(built.directory) as index:
        for query in built.queries:
            found = index.nearest(query, top_k=10, complexity=500)
            assert list(found.ids) == exact(built.vectors, query, metric, 10)


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_the_metric(build: Callable[..., Built], metric: str) -> None:
    built = build(metric)
    query = built.queries[0].astype(np.float64)
    with DiskANNIndex.open(built.directory) as index:
        found = index.nearest(query, top_k=5, complexity=200)
        rows = built.vectors[list(found.ids)].astype(np.float64)
        products = rows @ query
        cosines = products / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        true = {"l2": ((rows - query) ** 2).sum(1), "cosine": 1 - cosines, "inner_product": -products}[metric]
        assert found.distances == pytest.approx(true.tolist(), rel=1e-3, abs=1e-3)
        assert list(found.distances) == sorted(found.distances)
        score = {"l2": -true[0], "cosine": cosines[0], "inner_product": products[0]}[metric]
        assert index.score(found.distances[0]) == pytest.approx(score, rel=1e-3)


@pytest.fixture(scope="module")
def rust(build: Callable[..., Built]) -> Callable[[str], Any]:
    import diskannpy

    return lambda metric: diskannpy.StaticDiskIndex(str(build(metric).directory), num_threads=1, beam_width=4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("complexity", [10, 20, 80, 160])
def test_it_walks_as_diskannpy_rust_does_and_finds_no_less(
    build: Callable[..., Built], rust: Callable[[str], Any], metric: str, complexity: int
) -> None:
    """diskannpy-rust keeps L + 1 candidates, one for the node that it starts from, and ranks the L nearest that are left; ours
    keeps L, as the C++ code does, and ranks every node that was read.
    """
    built = build(metric)
    other = rust(metric)
    num_reads = []
    with DiskANNIndex.open(built.directory, reader="memory") as index:
        stored = np.array([index._space.prepare(query).vector for query in built.queries])
        rows = index._space.store(built.vectors).astype(np.float64)
        for query, vector in zip(built.queries, stored, strict=True):
            left, state = walk(index, query, complexity + 1)
            squared = ((rows - vector) ** 2).sum(1)
            theirs = other.search(vector, 10, complexity).identifiers.tolist()
            ranked = sorted(left[:complexity], key=squared.__getitem__)[:10]
            assert squared[ranked] == pytest.approx(squared[theirs], rel=1e-6)  # the same, but for ties
            true = set(exact(built.vectors, query, metric, 10))
            assert true & set(theirs) <= set(index.nearest(query, top_k=10, complexity=complexity + 1).ids)
            num_reads.append(int(state.counters[NUM_READS]))
    assert np.mean(num_reads) == pytest.approx(other.batch_search(stored, 10, complexity, 1).search_stats["mean_ios"])


def walk(index: DiskANNIndex, query: Any, complexity: int) -> tuple[list[int], State]:
    """Search, and give the candidates that are left, nearest first by their approximate distances."""
    search = index._begin(query, SearchParameters(10, complexity, 4))
    workspace = Workspace(index._open_lane(), index.num_points)
    state = search._begin(workspace)
    workspace.lane.advance(state, 10_000)
    return state.candidate_ids[: state.counters[NUM_CANDIDATES]].tolist(), state


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_same_along_the_same_way(built: Built, reader: Any) -> None:
    with (
        DiskANNIndex.open(built.directory, reader="memory") as memory,
        DiskANNIndex.open(built.directory, reader=reader) as index,
    ):
        assert index.reader == reader
        for query in built.queries[:20]:
            assert index.nearest(query, complexity=60) == memory.nearest(query, complexity=60)
            assert index.trace(query, complexity=60)[-1] == memory.nearest(query, complexity=60)


def test_the_reader_is_chosen_by_whether_the_file_is_in_memory(built: Built) -> None:
    path = built.directory / "ann_disk.index"
    path.read_bytes()
    assert resident_share(path) == 1.0
    with DiskANNIndex.open(built.directory) as index:
        assert index.reader == "memory"
    with pytest.raises(InvalidInputError, match="reader is one of"):
        open_reader(path, index._layout.geometry, "disk")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reader", "hop_delay_s", "number"), [("memory", 0.0, 3), ("aio", 0.0, 6), ("threads", 0.0, 16), ("memory", 0.1, 16)]
)
def test_searches_that_compute_are_bounded_by_the_processors(
    monkeypatch: pytest.MonkeyPatch, reader: str, hop_delay_s: float, number: int
) -> None:
    class Kind:
        kind = reader

    monkeypatch.setattr(indexing.os, "cpu_count", lambda: 3)
    assert indexing._num_searches(Kind(), hop_delay_s) == number  # type: ignore[arg-type]
    monkeypatch.setattr(indexing.os, "cpu_count", lambda: 64)
    assert indexing._num_searches(Kind(), hop_delay_s) == 16  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_searches": 0}, "max_searches is a whole number of at least 1, but 0"),
        ({"max_searches": 1.5}, "max_searches"),
        ({"hop_delay_s": -1}, "hop_delay_s is from 0"),
        ({"hop_delay_s": float("nan")}, "hop_delay_s"),
        ({"reader": "disk"}, "reader is one of"),
    ],
)
def test_what_an_index_cannot_be_opened_with_is_refused(built: Built, settings: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        DiskANNIndex.open(built.directory, **settings)


def test_code_that_cannot_be_kept_is_compiled_in_each_process() -> None:
    """As where nothing can be written to: numba refuses, where none of its ways to keep code is left."""
    script = (
        "from stream2llm_rag.retrievers.diskann import kernels; import numpy as np; table = np.ones((1, 256), np.float32);"
        "kernels.fill_table(table, np.ones(1, np.float32), np.zeros((1, 256), np.float32), np.array([0, 1]));"
        "print(table.sum())"
    )
    settings = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("256.0\n", 0), done.stderr


@pytest.mark.parametrize("num_dims", [1, 3, 1100])
def test_vectors_of_any_number_of_dimensions(tmp_path: Path, num_dims: int) -> None:
    vectors = clustered(300, num_dims)  # 1,100 dimensions take two sectors a node
    DiskANNIndex.build(vectors, tmp_path / "index", graph=GRAPH)
    for reader in READERS:
        with DiskANNIndex.open(tmp_path / "index", reader=reader) as index:  # type: ignore[arg-type]
            assert index._layout.geometry.sectors_per_node == (2 if num_dims == 1100 else 1)
            for query in clustered(5, num_dims, seed=1):
                assert list(index.nearest(query, top_k=3, complexity=300).ids) == exact(vectors, query, "l2", 3)


@pytest.mark.parametrize("num_points", [1, 2, 20])
def test_an_index_of_few_points(tmp_path: Path, num_points: int) -> None:
    vectors = clustered(num_points, 8)
    DiskANNIndex.build(vectors, tmp_path / "index", graph=GRAPH)
    with DiskANNIndex.open(tmp_path / "index") as index:
        found = index.nearest(vectors[0], top_k=num_points, complexity=50)
        assert list(found.ids) == exact(vectors, vectors[0], "l2", num_points)


def test_ids_are_those_that_were_given(tmp_path: Path) -> None:
    vectors = clustered(50, 8)
    DiskANNIndex.build(vectors, tmp_path / "index", ids=[1000 + 3 * row for row in range(50)], graph=GRAPH)
    with DiskANNIndex.open(tmp_path / "index") as index:
        found = index.nearest(vectors[7], top_k=5, complexity=50)
    assert list(found.ids) == [1000 + 3 * row for row in exact(vectors, vectors[7], "l2", 5)]


@pytest.mark.parametrize(
    ("query", "settings", "words"),
    [
        (np.full(32, np.nan), {}, "NaN or infinity"),
        (np.full(32, 1e300), {}, "NaN or infinity"),
        (np.full(32, 1e25), {}, r"a norm of at most 4\.61e\+18, but one of 5\.66e\+25 came"),
        (np.ones(31), {}, r"32 dimensions.*\(31,\)"),
        (np.ones((2, 32)), {}, "32 dimensions"),
        ("how?", {}, "array of numbers"),
        (np.ones(32), {"top_k": 2001, "complexity": 3000}, "top_k is a whole number from 1 to 2000"),
        (np.ones(32), {"top_k": 20, "complexity": 10}, "cannot be found among complexity=10"),
        (np.ones(32), {"top_k": 0}, "top_k"),
        (np.ones(32), {"beam_width": 65}, "beam_width is a whole number from 1 to 64"),
        (np.ones(32), {"complexity": 10.5}, "complexity"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(index: DiskANNIndex, query: Any, settings: Any, words: str) -> None:
    for search in (index.nearest, index.trace):
        with pytest.raises(InvalidInputError, match=words):
            search(query, **settings)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_a_query_without_a_direction_is_refused_where_one_is_needed(build: Callable[..., Built], metric: str) -> None:
    with DiskANNIndex.open(build(metric).directory) as index, pytest.raises(InvalidInputError, match="no direction"):
        index.nearest(np.zeros(32))


async def test_a_closed_index_says_so(built: Built) -> None:
    index = DiskANNIndex.open(built.directory)
    index.close()
    index.close()
    for use in (index.nearest, index.trace, index.search):
        with pytest.raises(LifecycleError, match="is closed"):
            use(built.queries[0])
    with pytest.raises(LifecycleError, match="is closed"):
        index.verify()


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(METRICS))
def test_the_order_in_the_index_is_that_of_the_metric(num_points: int, seed: int, metric: Any) -> None:
    vectors = clustered(num_points, 6, seed)
    space = Space(metric, 6, float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))
    query = space.prepare(clustered(1, 6, seed + 1)[0])
    stored = space.store(vectors)
    squared = ((stored.astype(np.float64) - query.vector) ** 2).sum(1)
    distances = space.distances(squared.astype(np.float32), query)
    nearest = exact(vectors, clustered(1, 6, seed + 1)[0], metric, 1)[0]
    assert distances[nearest] == pytest.approx(distances.min(), rel=1e-4, abs=1e-4)
    assert stored.shape == (num_points, space.num_stored_dims)
