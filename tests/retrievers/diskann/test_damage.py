"""Files that were cut off, changed or mixed up: an error, never a crash, and where it was asked for never a wrong answer."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stream2llm_rag.errors import IndexFormatError, Stream2LLMError
from stream2llm_rag.retrievers.diskann import DiskANNIndex

from .conftest import GRAPH, Built, clustered

FILES = ("ann_disk.index", "ann_pq_pivots.bin", "ann_pq_compressed.bin", "index.json", "labels.npy")
NUM_CORRUPTIONS = 1000


def corrupt(content: bytes, dice: random.Random) -> bytes:
    """Cut off, flip bits, overwrite, swap two stretches, or put something in; half of them near the start, where headers
    are."""
    changed = bytearray(content)
    place = dice.randrange(min(len(content), 512)) if dice.random() < 0.5 else dice.randrange(len(content))
    length = min(dice.choice([1, 4, 8, 64, 4096]), len(content) - place)
    match dice.randrange(5):
        case 0:
            del changed[place:]
        case 1:
            changed[place] ^= 1 << dice.randrange(8)
        case 2:
            changed[place : place + length] = dice.choice([b"\xff", b"\x00", b"\x7f", b"\x80"]) * length
        case 3:
            other = dice.randrange(len(content) - length + 1)
            changed[place : place + length], changed[other : other + length] = (
                content[other : other + length],
                content[place : place + length],
            )
        case _:
            changed[place:place] = dice.randbytes(length)
    return bytes(changed)


def search_all(directory: Path, queries: object, *, verify: bool) -> object:
    """Open, search, close; what was found, or the error of ours. Anything else raises."""
    try:
        with DiskANNIndex.open(directory, reader="memory") as index:
            if verify:
                index.verify()
            return [index.nearest(query, top_k=5, complexity=30).ids for query in np.asarray(queries)]
    except Stream2LLMError as error:
        return error


def fuzz(source: Path, scratch: Path, num_corruptions: int, seed: int) -> tuple[int, int]:
    """Corrupt a file, search with and without ``verify()``: how often an error came, with and without."""
    dice = random.Random(seed)
    directory = scratch / "fuzzed"
    shutil.copytree(source, directory)
    queries = clustered(3, 12, seed=9)
    right = search_all(source, queries, verify=True)
    assert isinstance(right, list)
    num_errors = [0, 0]
    for _ in range(num_corruptions):
        name = dice.choice(FILES)
        content = (source / name).read_bytes()
        changed = corrupt(content, dice)
        (directory / name).write_bytes(changed)
        verified, unverified = (search_all(directory, queries, verify=verify) for verify in (True, False))
        assert isinstance(verified, Stream2LLMError) or verified == right, (name, verified)
        assert isinstance(verified, Stream2LLMError) or changed == content or name == "index.json"
        num_errors[0] += isinstance(verified, Stream2LLMError)
        num_errors[1] += isinstance(unverified, Stream2LLMError)
        (directory / name).write_bytes(content)
    return num_errors[0], num_errors[1]


SCRIPT = """
import sys
from pathlib import Path
from tests.retrievers.diskann.test_damage import fuzz
print(*fuzz(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), 0))
"""


def test_1000_random_corruptions_neither_crash_nor_mislead(tmp_path: Path) -> None:
    source = tmp_path / "source"
    DiskANNIndex.build(clustered(200, 12), source, ids=range(500, 700), graph=GRAPH)
    command = [sys.executable, "-c", SCRIPT, str(source), str(tmp_path), str(NUM_CORRUPTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr  # a crash would end it with a signal
    with_verify, without = map(int, done.stdout.split())
    assert with_verify >= 0.9 * NUM_CORRUPTIONS
    assert without >= 0.3 * NUM_CORRUPTIONS  # the structure alone shows much


@pytest.mark.parametrize("name", [*FILES[:3], "documents.sqlite"])
def test_a_missing_file_is_named(copied: Built, name: str) -> None:
    (copied.directory / name).unlink()
    with pytest.raises(IndexFormatError, match=name), DiskANNIndex.open(copied.directory) as index:
        index.documents([0])


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"DiskANNIndex\.build"):
        DiskANNIndex.open(tmp_path / "nothing")


def test_files_of_two_indexes_do_not_pass_for_one(copied: Built, tmp_path: Path) -> None:
    DiskANNIndex.build(clustered(300, 32), tmp_path / "other", graph=GRAPH)
    shutil.copy(tmp_path / "other" / "ann_disk.index", copied.directory)
    with pytest.raises(IndexFormatError, match="2000 codes"):
        DiskANNIndex.open(copied.directory)


def test_a_changed_byte_of_any_file_is_seen_by_verify(copied: Built) -> None:
    for name in (*FILES[:3], "documents.sqlite"):
        path = copied.directory / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(IndexFormatError, match=name), DiskANNIndex.open(copied.directory) as index:
            index.verify()
        path.write_bytes(content)
    with DiskANNIndex.open(copied.directory) as index:
        index.verify()


def test_documents_of_a_damaged_database_are_an_error(copied: Built) -> None:
    path = copied.directory / "documents.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    with DiskANNIndex.open(copied.directory) as index, pytest.raises(IndexFormatError, match=r"documents\.sqlite"):
        index.documents([1999])
