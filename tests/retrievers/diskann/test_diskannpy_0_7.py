"""Indexes that diskannpy 0.7 built, kept as files in ``diskannpy_0_7``: opened, and searched as it searches them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream2llm_rag.errors import IndexFormatError, InvalidInputError
from stream2llm_rag.retrievers.diskann import DiskANNIndex

from .conftest import exact

NAMES = ("l2", "inner_product", "l2_in_parts")
READERS = ("memory", "threads", *(("aio",) if sys.platform == "linux" else ()))


def unpack(name: str, directory: Path) -> dict[str, Any]:
    """Write the files of an index into ``directory``; everything that belongs to it."""
    with np.load(Path(__file__).with_name("diskannpy_0_7") / f"{name}.npz") as arrays:
        everything = dict(arrays)
    for file, content in everything.items():
        if file.startswith("ann_"):
            content.tofile(directory / file)
    return everything


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_it_finds_what_diskannpy_0_7_found(tmp_path: Path, name: str, reader: Any) -> None:
    other = unpack(name, tmp_path)
    with DiskANNIndex.open(tmp_path, reader=reader) as index:
        index.verify()
        assert (index.metric, index.num_points, index.num_dims) == (name.removesuffix("_in_parts"), 260, 4)
        for complexity in (5, 20):
            found = [index.nearest(query, top_k=5, complexity=complexity, beam_width=2).ids for query in other["queries"]]
            assert found == [tuple(ids) for ids in other[f"found_{complexity}"].tolist()]


@pytest.mark.parametrize("name", ["l2", "inner_product"])  # the merged graph of the third does not reach every node
def test_distances_are_exact_and_with_many_candidates_so_is_the_list(tmp_path: Path, name: str) -> None:
    other = unpack(name, tmp_path)
    with DiskANNIndex.open(tmp_path) as index:
        for query in other["queries"]:
            found = index.nearest(query, top_k=5, complexity=260)
            assert list(found.ids) == exact(other["vectors"], query, index.metric, 5)
            rows = other["vectors"][list(found.ids)]
            true = -(rows @ query) if index.metric == "inner_product" else ((rows - query) ** 2).sum(1)
            assert found.distances == pytest.approx(true.tolist(), rel=1e-4, abs=1e-4)


def test_a_search_starts_from_the_nearest_of_several_medoids(tmp_path: Path) -> None:
    other = unpack("l2_in_parts", tmp_path)
    medoids = other["ann_disk.index_medoids.bin"][8:].view(np.uint32)
    centroids = other["ann_disk.index_centroids.bin"][8:].view(np.float32).reshape(3, 4)
    with DiskANNIndex.open(tmp_path) as index:
        firsts = [index.trace(query, top_k=1, complexity=1, beam_width=1)[0].ids for query in other["queries"]]
    nearest = [int(medoids[((centroids - query) ** 2).sum(1).argmin()]) for query in other["queries"]]
    assert firsts == [(medoid,) for medoid in nearest]
    assert len(set(nearest)) > 1


def rewrite(path: Path, offset: int, content: bytes) -> None:
    changed = bytearray(path.read_bytes())
    changed[offset : offset + len(content)] = content
    path.write_bytes(changed)


@pytest.mark.parametrize(
    ("name", "file", "offset", "content", "words"),
    [
        ("l2", "ann_disk.index", 0, b"\x0a", "no header of DiskANN's"),
        ("l2", "ann_disk.index", 8, b"\xff\xff", "sectors"),
        ("l2", "ann_disk.index", 8, bytes(8), "0 points"),
        ("l2", "ann_disk.index", 48, b"\x01", "frozen points"),
        ("l2", "ann_disk.index", 64, b"\x01", "reorder data"),
        ("l2", "ann_disk.index", 72, b"\x01", "header says"),
        ("l2", "ann_metadata.bin", 8, b"\x02", "metric 'cosine'; known are l2"),
        ("l2", "ann_metadata.bin", 0, b"\x07", "a type, a metric"),
        ("l2", "ann_pq_pivots.bin", 0, b"\x06", "sections"),
        ("inner_product", "ann_disk.index_max_base_norm.bin", 8, b"\x00\x00\x00\x00", "one norm above 0"),
        ("l2_in_parts", "ann_disk.index_medoids.bin", 8, b"\xff\xff", "3 nodes to start from"),
        ("l2_in_parts", "ann_disk.index_centroids.bin", 0, b"\x02", "bytes"),
    ],
)
def test_what_does_not_add_up_is_said(tmp_path: Path, name: str, file: str, offset: int, content: bytes, words: str) -> None:
    unpack(name, tmp_path)
    rewrite(tmp_path / file, offset, content)
    with pytest.raises(IndexFormatError, match=words):
        DiskANNIndex.open(tmp_path)


@pytest.mark.parametrize("suffix", ["disk.index_pq_pivots.bin", "pq_pivots.bin_rotation_matrix.bin"])
def test_other_kinds_of_quantisation_are_refused(tmp_path: Path, suffix: str) -> None:
    unpack("l2", tmp_path)
    shutil.copy(tmp_path / "ann_pq_pivots.bin", tmp_path / f"ann_{suffix}")
    with pytest.raises(IndexFormatError, match="not supported"):
        DiskANNIndex.open(tmp_path)


def test_without_the_metadata_file_the_metric_is_asked_for(tmp_path: Path) -> None:
    other = unpack("inner_product", tmp_path)
    (tmp_path / "ann_metadata.bin").unlink()
    with pytest.raises(InvalidInputError, match="Write metric= one of l2, inner_product"):
        DiskANNIndex.open(tmp_path)
    with DiskANNIndex.open(tmp_path, metric="inner_product") as index:
        found = index.nearest(other["queries"][0], top_k=5, complexity=20, beam_width=2)
    assert found.ids == tuple(other["found_20"][0].tolist())
    with pytest.raises(InvalidInputError, match="dtype is float32, int8 or uint8"):
        DiskANNIndex.open(tmp_path, metric="inner_product", dtype="float64")
