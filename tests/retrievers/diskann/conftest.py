"""Small indexes, built once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stream2llm_rag.documents import Document
from stream2llm_rag.retrievers.diskann import DiskANNIndex, GraphParameters

os.environ.setdefault("RUST_LOG", "error")  # diskannpy-rust logs each search to the standard output

Array = npt.NDArray[Any]
GRAPH = GraphParameters(degree=24, build_complexity=60, num_threads=2)
METRICS = ("l2", "cosine", "inner_product")


def clustered(num_points: int, num_dims: int, seed: int = 0) -> Array:
    """Overlapping Gaussian clusters of different sizes, f32."""
    dice = np.random.default_rng(seed)
    centers = dice.normal(size=(12, num_dims))
    points = centers[dice.integers(0, len(centers), num_points)] + 0.9 * dice.normal(size=(num_points, num_dims))
    return (points * dice.uniform(0.5, 2.0, (num_points, 1))).astype(np.float32)


def exact(vectors: Array, query: Array, metric: str, top_k: int) -> list[int]:
    """The nearest rows, by computing all distances in double precision."""
    rows, wanted = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        scores = -((rows - wanted) ** 2).sum(1)
    else:
        scores = rows @ wanted
        if metric == "cosine":
            scores /= np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted)
    return [int(row) for row in np.argsort(-scores, kind="stable")[:top_k]]


@dataclass(frozen=True)
class Built:
    directory: Path
    vectors: Array
    queries: Array
    metric: str


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """Builds 2,000 x 32 for a metric, or finds it built."""
    built: dict[str, Built] = {}

    def build(metric: str = "l2") -> Built:
        if metric not in built:
            vectors, queries = clustered(2000, 32), clustered(60, 32, seed=1)
            directory = tmp_path_factory.mktemp("index") / metric
            documents = [Document(f"Text {row}", f"doc:{row}", metadata={"row": row}) for row in range(len(vectors))]
            DiskANNIndex.build(vectors, directory, documents=documents, metric=metric, graph=GRAPH)  # type: ignore[arg-type]
            built[metric] = Built(directory, vectors, queries, metric)
        return built[metric]

    return build


@pytest.fixture(scope="session")
def built(build: Callable[..., Built]) -> Built:
    return build()


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """A copy to damage."""
    directory = tmp_path / "copy"
    shutil.copytree(built.directory, directory)
    return Built(directory, built.vectors, built.queries, built.metric)


@pytest.fixture
def index(built: Built) -> Iterator[DiskANNIndex]:
    with DiskANNIndex.open(built.directory) as index:
        yield index
