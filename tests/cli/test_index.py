from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run, unboxed
from tests.retrievers.diskann.test_retriever import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = tmp_path_factory.mktemp("texts")
    for document in corpus():
        (texts / f"{document.source.replace(':', '-')}.md").write_text(document.text)
    (texts / "left-out.bin").write_bytes(b"\xff\xfe")
    (texts / "empty.txt").write_text("\n")
    return texts


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("built") / "index"
    done = run("index", "build", folder, index, "--num-dims", "8")
    assert done.exit_code == 0, done.stderr
    assert "90 documents" in done.stdout
    return index


def test_search_finds_documents_on_the_subject_and_tells_how(index: Path) -> None:
    done = run("index", "search", index, "How do I cancel a coroutine?", "--top-k", "3", "--complexity", "60")
    assert done.exit_code == 0, done.stderr
    ranked = [line for line in done.stdout.splitlines() if line.lstrip()[:1].isdigit()]
    assert [line.split()[0] for line in ranked] == ["1", "2", "3"]
    assert all("tasks-" in line for line in ranked)
    assert "all, final after" in done.stderr


def test_info_says_what_an_index_holds(index: Path, tmp_path: Path) -> None:
    done = run("index", "info", index, "--verify", "--json", tmp_path / "info.json")
    assert done.exit_code == 0, done.stderr
    stored = json.loads((tmp_path / "info.json").read_text())
    assert (stored["points"], stored["dimensions"], stored["metric"], stored["verified"]) == (90, 8, "cosine", True)
    assert "cosine" in done.stdout


def test_documents_with_vectors_of_their_own(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Text {row}", "source": f"doc:{row}", "metadata": {"row": row}}) for row in range(30)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(30, 6)))
    options = ("--vectors", tmp_path / "vectors.npy", "--metric", "l2")
    assert run("index", "build", tmp_path / "docs.jsonl", tmp_path / "index", *options).exit_code == 0
    done = run("index", "search", tmp_path / "index", "anything")
    assert done.exit_code == 2
    assert "vectors of your own" in done.stderr
    again = run("index", "build", tmp_path / "docs.jsonl", tmp_path / "index", *options)
    assert again.exit_code == 2
    assert "not empty" in again.stderr
    assert run("index", "build", tmp_path / "docs.jsonl", tmp_path / "index", *options, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("docs.jsonl", b'{"text": 1}', "line 1: a document is an object"),
        ("docs.jsonl", b"[", "line 1"),
        ("docs.jsonl", b"", "no document in it"),
        ("docs.txt", b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_what_holds_no_documents_is_said(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = run("index", "build", tmp_path / name, tmp_path / "index")
    assert done.exit_code == 2
    assert words in unboxed(done.stderr)


def test_a_folder_without_an_index_is_an_error(tmp_path: Path) -> None:
    done = run("index", "info", tmp_path)
    assert done.exit_code == 2
    assert "There is no index" in done.stderr
