from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

import pytest

from stream2llm_rag.errors import InvalidInputError, MissingExtraError
from stream2llm_rag.simulation.plots import draw_all
from tests.simulation.samples import sample_run

WAITS = [0.1, 0.3, 0.9, 2.0]
RUNS = [
    sample_run(frontend, [wait * qps for wait in WAITS], qps=qps, seed=seed, num_invalidated=num_invalidated)
    for frontend, num_invalidated in (("ns", 0), ("density+hints", 500), ("aged-fcfs", 700))
    for qps in (1.0, 4.0)
    for seed in (0, 1)
]


def words(file):
    return {element.text for element in ET.parse(file).iter() if element.tag.endswith("text")}


def test_each_cell_and_each_series_gets_its_pictures(tmp_path):
    files = draw_all([*RUNS, sample_run("native", [float("inf")] * 4)], tmp_path / "new", suffixes=(".svg",))
    assert [file.stem for file in files] == [
        "ttft-against-qps-crawler-pool-1",
        "ttft-crawler-pool-1-1-qps",
        "invalidated-crawler-pool-1-1-qps",
        "completion-crawler-pool-1-1-qps",
        "ttft-crawler-pool-1-4-qps",
        "invalidated-crawler-pool-1-4-qps",
        "completion-crawler-pool-1-4-qps",
    ]
    assert {"ns", "density+hints", "aged-fcfs", "P50", "P95", "P99", "queries a second"} <= words(files[0])
    assert "ns" not in words(files[2])  # it invalidates nothing
    assert "never" in words(files[6])


def test_the_same_runs_give_the_same_files(tmp_path):
    first, again = (draw_all(RUNS[:2], tmp_path / name, suffixes=(".svg",)) for name in ("first", "again"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]


def test_pictures_come_as_vectors_and_as_pixels(tmp_path):
    files = draw_all(RUNS[:1], tmp_path)
    assert [file.suffix for file in files] == [".svg", ".png"] * 2
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="pictures cannot be written"):
        draw_all(RUNS[:1], tmp_path / "file" / "folder")


def test_pictures_without_matplotlib_are_an_error_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"stream2llm-rag\[bench\]"):
        draw_all(RUNS[:1], tmp_path)
