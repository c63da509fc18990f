"""Build an index: beside its place, in a process of its own, and moved there when it is whole."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import IndexBuildError, IndexFormatError, InvalidInputError, MissingExtraError
from stream2llm_rag.retrievers.diskann import checks
from stream2llm_rag.retrievers.diskann.layout import DEFAULT_PREFIX, SECTOR_BYTES, Array, read_layout
from stream2llm_rag.retrievers.diskann.manifest import Manifest, digest_of
from stream2llm_rag.retrievers.diskann.metrics import METRICS, Floats, Metric, Space, norms_of
from stream2llm_rag.retrievers.diskann.store import write_documents

logger = logging.getLogger(__name__)

BuildStage: TypeAlias = Literal["vectors", "quantise", "graph", "layout", "documents", "done"]
DOCUMENTS_FILE = "documents.sqlite"
LABELS_FILE = "labels.npy"

_SCRIPT = Path(__file__).with_name("build_process.py")
# What the Rust builder logs when a stage ends, and the stage that follows it.
_CHECKPOINTS: tuple[tuple[str, BuildStage], ...] = (("PqConstruction", "graph"), ("InmemIndexBuild", "layout"))
_ROWS_AT_ONCE = 16_384
_NUM_LINES_KEPT = 20


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """A stage of the build begins, ``elapsed_s`` seconds after its start."""

    stage: BuildStage
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class GraphParameters:
    """How the graph is built: R, L and alpha of the DiskANN paper, and bytes of a quantised vector.

    ``num_chunks`` None takes a byte for two dimensions, at most 128. ``num_threads`` 0 takes all processors.
    """

    degree: int = 64
    build_complexity: int = 100
    alpha: float = 1.2
    num_chunks: int | None = None
    num_threads: int = 0
    max_memory_gb: float = 4.0

    def check(self, num_stored_dims: int) -> GraphParameters:
        """These with ``num_chunks`` chosen. InvalidInputError for what cannot be built."""
        num_chunks = max(1, min(128, num_stored_dims // 2)) if self.num_chunks is None else self.num_chunks
        for name, value, least, most in (
            ("degree", self.degree, 4, 512),
            ("build_complexity", self.build_complexity, self.degree, 10_000),
            ("num_chunks", num_chunks, 1, num_stored_dims),
            ("num_threads", self.num_threads, 0, 1024),
        ):
            if not isinstance(value, int) or not least <= value <= most:
                raise InvalidInputError(f"{name} is a whole number from {least} to {most}, but {value!r} came.")
        if not 1.0 <= self.alpha <= 4.0 or not self.max_memory_gb > 0:
            raise InvalidInputError(
                f"alpha is 1 to 4 and max_memory_gb above 0, but {self.alpha!r}, {self.max_memory_gb!r} came."
            )
        return GraphParameters(self.degree, self.build_complexity, self.alpha, num_chunks, self.num_threads, self.max_memory_gb)


def build_index(
    vectors: Any,
    directory: Path,
    *,
    documents: Sequence[Document] | None = None,
    ids: Sequence[int] | None = None,
    metric: Metric = "l2",
    graph: GraphParameters | None = None,
    extras: Callable[[Path], None] | None = None,
    overwrite: bool = False,
    timeout_s: float | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> None:
    """Build an index of ``vectors`` in ``directory``; see :meth:`DiskANNIndex.build`.

    ``extras`` writes further files into the folder that it is given.
    """
    if metric not in METRICS:
        raise InvalidInputError(f"metric is one of {', '.join(METRICS)}, but {metric!r} came.")
    floats = checks.require_vectors(vectors, metric)
    labels = checks.require_ids(ids, len(floats))
    if documents is not None and len(documents) != len(floats):
        raise InvalidInputError(f"There are {len(floats)} vectors and {len(documents)} documents. Write one for each vector.")
    if wrong := [type(each).__name__ for each in documents or () if not isinstance(each, Document)]:
        raise InvalidInputError(f"documents holds Document values, but a {wrong[0]} came.")
    max_norm = float(norms_of(floats).max()) or 1.0 if metric == "inner_product" else 1.0
    space = Space(metric, floats.shape[1], max_norm)
    graph = (graph or GraphParameters()).check(space.num_stored_dims)
    if importlib.util.find_spec("diskannpy") is None:
        raise MissingExtraError("diskannpy-rust, which builds indexes,", "diskann")
    _require_free(directory, overwrite)
    report = _Reporter(on_progress)
    with _folder_beside(directory) as folder:
        checks.require_space(folder, _needed_bytes(len(floats), space, graph, documents))
        report("vectors")
        _write_vectors(folder / "vectors.bin", floats, space)
        report("quantise")
        _run_builder(folder, graph, timeout_s, report)
        (folder / "vectors.bin").unlink()
        report("documents")
        _write_labels_and_documents(folder, labels, documents, len(floats))
        if extras is not None:
            extras(folder)
        _finish(folder, space, graph, labels is not None, documents is not None)
        _move(folder, directory, overwrite)
    report("done")


class _Reporter:
    def __init__(self, on_progress: Callable[[BuildProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._started_s = time.monotonic()

    def __call__(self, stage: BuildStage) -> None:
        if self._on_progress is not None:
            self._on_progress(BuildProgress(stage, time.monotonic() - self._started_s))


def _require_free(directory: Path, overwrite: bool) -> None:
    if not directory.parent.is_dir():
        raise InvalidInputError(f"{directory.parent} is no folder. Make it first.")
    if directory.exists() and not directory.is_dir():
        raise InvalidInputError(f"{directory} is a file. Name a folder that is not there yet.")
    if directory.exists() and any(directory.iterdir()) and not overwrite:
        raise InvalidInputError(f"{directory} is not empty. Name another folder, or write overwrite=True.")


@contextmanager
def _folder_beside(directory: Path) -> Iterator[Path]:
    """An empty folder next to ``directory``, gone at the end. What an interrupted build left there is thrown away."""
    folder = directory.with_name(f".{directory.name}.building")
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder):
            _empty(folder)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise IndexBuildError(f"{folder} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of ``folder``. The lock goes with this process, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise BlockingIOError  # it was moved into its place meanwhile
        yield
    except (BlockingIOError, FileNotFoundError) as error:
        raise IndexBuildError(f"{folder} is in use: another process builds the same index. Wait for it to end.") from error
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _needed_bytes(num_points: int, space: Space, graph: GraphParameters, documents: Sequence[Document] | None) -> int:
    """Bytes on disk at the most: the vectors, the nodes, their codes, and the documents (UTF-8, indexed)."""
    node_bytes = 4 * (space.num_stored_dims + 1 + graph.degree)
    nodes_per_sector = SECTOR_BYTES // node_bytes
    sectors = num_points / nodes_per_sector if nodes_per_sector else num_points * -(-node_bytes // SECTOR_BYTES)
    text_bytes = sum(4 * len(document.text) + 1000 for document in documents or ())
    graph_in_memory = num_points * node_bytes  # which the builder may write out before it is laid out
    return int(2 * num_points * 4 * space.num_stored_dims + sectors * SECTOR_BYTES + graph_in_memory + text_bytes + 10**7)


def _write_vectors(path: Path, vectors: Floats, space: Space) -> None:
    """DiskANN's format: u32 rows, u32 columns, f32 values by row."""
    with path.open("wb") as file:
        np.array([len(vectors), space.num_stored_dims], np.uint32).tofile(file)
        for first in range(0, len(vectors), _ROWS_AT_ONCE):
            space.store(vectors[first : first + _ROWS_AT_ONCE]).tofile(file)


def _run_builder(folder: Path, graph: GraphParameters, timeout_s: float | None, report: _Reporter) -> None:
    """Run the builder to its end. IndexBuildError, with its last words, where it fails or takes longer than ``timeout_s``."""
    settings = {
        "data": str(folder / "vectors.bin"),
        "index_directory": str(folder),
        "complexity": graph.build_complexity,
        "graph_degree": graph.degree,
        "build_memory_maximum": graph.max_memory_gb,
        "num_threads": graph.num_threads or os.cpu_count() or 1,
        "num_of_pq_chunks": graph.num_chunks,
        "alpha": graph.alpha,
        "index_prefix": DEFAULT_PREFIX,
    }
    command = [sys.executable, "-P", str(_SCRIPT), json.dumps(settings)]
    last_lines: deque[str] = deque(maxlen=_NUM_LINES_KEPT)
    timed_out = threading.Event()
    with subprocess.Popen(  # noqa: S603 - our own script
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        timer = threading.Timer(timeout_s or 0, _kill, (process, timed_out))
        try:
            if timeout_s is not None:
                timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                last_lines.append(line.rstrip())
                _report_checkpoint(line, report)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if timed_out.is_set():
        raise IndexBuildError(f"The build took longer than timeout_s={timeout_s:g} and was ended.")
    if process.returncode != 0:
        words = "\n  ".join(last_lines)
        raise IndexBuildError(f"DiskANN's builder ended with exit code {process.returncode}. Its last words:\n  {words}")


def _kill(process: subprocess.Popen[str], timed_out: threading.Event) -> None:
    timed_out.set()
    process.kill()


def _report_checkpoint(line: str, report: _Reporter) -> None:
    for checkpoint, next_stage in _CHECKPOINTS:
        if checkpoint in line:
            report(next_stage)


def _write_labels_and_documents(
    folder: Path, labels: Array | None, documents: Sequence[Document] | None, num_points: int
) -> None:
    if labels is not None:
        np.save(folder / LABELS_FILE, labels)
    if documents is not None:
        write_documents(folder / DOCUMENTS_FILE, range(num_points) if labels is None else labels.tolist(), documents)


def _finish(folder: Path, space: Space, graph: GraphParameters, has_labels: bool, has_documents: bool) -> None:
    """Check what was built, and describe it. The description is written last."""
    try:
        layout = read_layout(folder)
        checks.verify_nodes(layout)
    except IndexFormatError as error:
        raise IndexBuildError(f"DiskANN's builder wrote an index that cannot be used: {error}") from error
    digests = {path.name: digest_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    num_points = layout.geometry.num_points
    build: Mapping[str, Any] = asdict(graph)
    manifest = Manifest(space.metric, num_points, space.num_dims, space.max_norm, has_labels, has_documents, digests, build)
    manifest.write(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Have the disk hold it before it is moved into place."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(folder: Path, directory: Path, overwrite: bool) -> None:
    """Move the whole index to its place; one that is there makes room only then."""
    if not (overwrite and directory.exists()):
        folder.rename(directory)  # which replaces an empty folder
        return
    old = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    folder.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
