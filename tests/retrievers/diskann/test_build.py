from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import IndexBuildError, InvalidInputError
from stream2llm_rag.retrievers.diskann import BuildProgress, DiskANNIndex, GraphParameters, checks
from stream2llm_rag.retrievers.diskann import builder as building

from .conftest import GRAPH, Built, clustered

GOOD = clustered(40, 8)


def with_(row: int, value: float) -> Any:
    changed = GOOD.copy()
    changed[row, 3] = value
    return changed


@pytest.mark.parametrize(
    ("vectors", "settings", "words"),
    [
        (with_(7, np.nan), {}, "row 7 has NaN"),
        (with_(39, np.inf), {}, "row 39 has NaN or infinity"),
        (with_(5, 3e38), {}, "Row 5 has a norm"),
        (np.zeros((40, 8)), {"metric": "cosine"}, "Row 0 is all zeros"),
        (np.empty((0, 8)), {}, r"a vector or more.*\(0, 8\)"),
        (np.empty((8, 0)), {}, "1 to 4096 dimensions"),
        (np.ones(8), {}, "an array of 1 dimensions"),
        ([["a", "b"]], {}, "vectors holds numbers"),
        (GOOD, {"metric": "manhattan"}, "metric is one of l2, cosine, inner_product"),
        (GOOD, {"ids": range(39)}, "a whole number for each of the 40"),
        (GOOD, {"ids": [*range(39), 5]}, "5 came more than once"),
        (GOOD, {"ids": ["a"] * 40}, "Names go into Document.source"),
        (GOOD, {"documents": [Document("text", "source")]}, "40 vectors and 1 documents"),
        (GOOD, {"documents": ["text"] * 40}, "is Document.text, source., but str came"),
        (GOOD, {"documents": [Document("text", 5)] * 40}, "source of a document is a str, but 5 came"),
        (GOOD, {"documents": [Document("text", "source", 7)] * 40}, "title of a document is a str, but 7 came"),
        (GOOD, {"documents": [Document("text", "source", 0)] * 40}, "title of a document is a str, but 0 came"),
        *(
            (GOOD, {"documents": [Document(*words)] * 40}, "cannot be stored as UTF-8")
            for words in (("\ud800", "source"), ("text", "caf\udce9.txt"), ("text", "source", "\ud800"))
        ),
        ([[1.0, 2.0], [3.0]], {}, "a row for each, all of one length"),
        (GOOD, {"graph": GraphParameters(degree=2)}, "degree is a whole number from 4 to 512"),
        (GOOD, {"graph": GraphParameters(num_chunks=9)}, "num_chunks is a whole number from 1 to 8"),
        (GOOD, {"graph": GraphParameters(alpha=0.5)}, "alpha is 1 to 4"),
    ],
)
def test_what_cannot_be_indexed_is_refused_and_leaves_nothing(tmp_path: Path, vectors: Any, settings: Any, words: str) -> None:
    told: list[BuildProgress] = []
    with pytest.raises(InvalidInputError, match=words):
        DiskANNIndex.build(vectors, tmp_path / "index", **settings, on_progress=told.append)
    assert list(tmp_path.iterdir()) == []
    assert {each.stage for each in told} <= {"documents"}  # nothing was built for it


@pytest.mark.parametrize(("num_threads", "num_points", "chosen"), [(8, 2, 1), (8, 1999, 1), (8, 5000, 5), (2, 10**6, 2)])
def test_few_points_are_not_inserted_at_once(num_threads: int, num_points: int, chosen: int) -> None:
    """Two points that were sometimes had no way from one to the other."""
    assert GraphParameters(num_threads=num_threads).check(8, num_points).num_threads == chosen


def test_a_folder_that_is_taken_is_left_alone_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine").write_text("text")
    with pytest.raises(InvalidInputError, match="not empty"):
        DiskANNIndex.build(GOOD, tmp_path / "index", graph=GRAPH)
    with pytest.raises(InvalidInputError, match="is a file"):
        DiskANNIndex.build(GOOD, tmp_path / "index" / "mine", graph=GRAPH)
    with pytest.raises(InvalidInputError, match="is no folder"):
        DiskANNIndex.build(GOOD, tmp_path / "missing" / "index", graph=GRAPH)
    DiskANNIndex.build(GOOD, tmp_path / "index", graph=GRAPH, overwrite=True)
    assert not (tmp_path / "index" / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    with DiskANNIndex.open(tmp_path / "index") as index:
        assert index.num_points == 40


def test_a_full_disk_is_said_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(IndexBuildError, match="MB are free"):
        DiskANNIndex.build(GOOD, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_in_the_order_of_the_stages(tmp_path: Path) -> None:
    told: list[BuildProgress] = []
    DiskANNIndex.build(GOOD, tmp_path / "index", graph=GRAPH, on_progress=told.append)
    stages = [each.stage for each in told]
    assert stages[:3] == ["documents", "vectors", "quantise"]
    assert stages[-1] == "done"
    assert [each.elapsed_s for each in told] == sorted(each.elapsed_s for each in told)


def test_a_builder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "hangs.py"
    script.write_text("import time\nprint('working', flush=True)\ntime.sleep(600)")
    monkeypatch.setattr(building, "_SCRIPT", script)
    with pytest.raises(IndexBuildError, match=r"longer than timeout_s=0\.2"):
        DiskANNIndex.build(GOOD, tmp_path / "index", timeout_s=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["hangs.py"]


def test_a_builder_that_fails_or_crashes_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fails.py"
    monkeypatch.setattr(building, "_SCRIPT", script)
    script.write_text("import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(IndexBuildError, match=r"exit code -11.*\s+last words"):
        DiskANNIndex.build(GOOD, tmp_path / "index")
    script.write_text("print('nothing was built')")
    with pytest.raises(IndexBuildError, match="cannot be used"):
        DiskANNIndex.build(GOOD, tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["fails.py"]


KILLED = """
import sys
from pathlib import Path
import numpy as np
from stream2llm_rag.retrievers.diskann import build, builder
builder._SCRIPT = Path(sys.argv[2])
build.build_index(np.ones((9, 3)), Path(sys.argv[1]))
"""


def test_a_build_that_was_killed_is_built_again_and_its_builder_is_gone(tmp_path: Path) -> None:
    script, pid_file = tmp_path / "hangs.py", tmp_path / "pid"
    text = building._SCRIPT.read_text().replace(
        "    import diskannpy", f"    import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    script.write_text(text)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "index"), str(script)]) as process:
        while not (pid_file.exists() and pid_file.read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        builder = os.pidfd_open(int(pid_file.read_text()))
        with pytest.raises(IndexBuildError, match="another process builds"):
            DiskANNIndex.build(GOOD, tmp_path / "index", graph=GRAPH)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".index.building").exists()
    import select

    assert select.select([builder], [], [], 60)[0], "the builder is still running"
    os.close(builder)
    DiskANNIndex.build(GOOD, tmp_path / "index", graph=GRAPH)
    assert not (tmp_path / ".index.building").exists()
    with DiskANNIndex.open(tmp_path / "index") as index:
        index.verify()


def test_a_lock_that_nobody_holds_does_not_stop_a_build(tmp_path: Path) -> None:
    (tmp_path / ".index.building").mkdir()
    (tmp_path / ".index.building" / "leftover").write_text("old")
    with open(tmp_path / ".index.building" / "leftover") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        DiskANNIndex.build(GOOD, tmp_path / "index", graph=GRAPH)
    assert not (tmp_path / "index" / "leftover").exists()


def test_documents_come_back_as_they_were(tmp_path: Path) -> None:
    documents = [
        Document(f"Text {row} ß\n", f"doc:{row}", f"Title {row}" if row % 2 else None, metadata={"row": row})
        for row in range(40)
    ]
    DiskANNIndex.build(GOOD, tmp_path / "index", documents=documents, ids=range(100, 140), graph=GRAPH)
    with DiskANNIndex.open(tmp_path / "index") as index:
        found = index.documents([139, 100, 107])
    assert found == (documents[39], documents[0], documents[7])
    assert [dict(each.metadata) for each in found] == [{"row": 39}, {"row": 0}, {"row": 7}]


def test_an_index_of_diskannpy_rust_itself_is_opened(tmp_path: Path, built: Built) -> None:
    import diskannpy

    settings = {"complexity": 60, "graph_degree": 24, "build_memory_maximum": 1.0, "num_threads": 1, "num_of_pq_chunks": 16}
    diskannpy.build_disk_index(built.vectors, "l2", str(tmp_path), vector_dtype=np.float32, index_prefix="other", **settings)
    with DiskANNIndex.open(tmp_path, prefix="other") as index:
        index.verify()
        assert (index.metric, index.num_dims, index.has_documents) == ("l2", 32, False)
        found = index.nearest(built.vectors[5], top_k=1)
        assert found.ids == (5,)
        (tmp_path / "other_metadata.bin").unlink()
    with pytest.raises(InvalidInputError, match="Write metric="):
        DiskANNIndex.open(tmp_path, prefix="other")
    with DiskANNIndex.open(tmp_path, prefix="other", metric="l2", dtype=np.float32) as index:
        assert index.nearest(built.vectors[5], top_k=1).ids == (5,)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_an_index_of_whole_numbers_is_searched(tmp_path: Path, dtype: Any) -> None:
    import diskannpy

    dice = np.random.default_rng(0)
    vectors = dice.integers(0, 100, (300, 12)).astype(dtype)
    settings = {"complexity": 60, "graph_degree": 24, "build_memory_maximum": 1.0, "num_threads": 1, "num_of_pq_chunks": 6}
    diskannpy.build_disk_index(vectors, "l2", str(tmp_path), vector_dtype=dtype, **settings)
    with DiskANNIndex.open(tmp_path) as index:
        index.verify()
        found = index.nearest(vectors[7].astype(np.float32), top_k=5, complexity=300)
    squared = ((vectors.astype(float) - vectors[7]) ** 2).sum(1)
    assert list(found.distances) == sorted(squared)[:5]
