"""Build an index: beside its place, in a process of its own, and moved there when it is whole."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stream2llm_rag.documents import Document, check_document
from stream2llm_rag.errors import IndexBuildError, IndexFormatError, InvalidInputError, MissingExtraError
from stream2llm_rag.retrievers.diskann import checks
from stream2llm_rag.retrievers.diskann.builder import BuildProgress, GraphParameters, Reporter, run_builder
from stream2llm_rag.retrievers.diskann.layout import SECTOR_BYTES, read_layout
from stream2llm_rag.retrievers.diskann.manifest import Manifest, digest_of
from stream2llm_rag.retrievers.diskann.matrices import Array
from stream2llm_rag.retrievers.diskann.metrics import METRICS, Floats, Metric, Space, norms_of
from stream2llm_rag.retrievers.diskann.staging import folder_beside, move_into_place, require_free, sync
from stream2llm_rag.retrievers.diskann.store import write_documents

DOCUMENTS_FILE = "documents.sqlite"
LABELS_FILE = "labels.npy"

_ROWS_AT_ONCE = 16_384


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
    for document in documents or ():
        try:
            check_document(document)
        except TypeError as error:
            raise InvalidInputError(f"documents cannot be stored: {error}") from None
    max_norm = float(norms_of(floats).max()) or 1.0 if metric == "inner_product" else 1.0
    space = Space(metric, floats.shape[1], max_norm)
    graph = (graph or GraphParameters()).check(space.num_stored_dims, len(floats))
    if importlib.util.find_spec("diskannpy") is None:
        raise MissingExtraError("diskannpy-rust, which builds indexes,", "diskann")
    require_free(directory, overwrite)
    report = Reporter(on_progress)
    with folder_beside(directory) as folder:
        checks.require_space(folder, _needed_bytes(len(floats), space, graph, documents))
        report("documents")  # first: what cannot be stored is to be said before hours of building
        _write_labels_and_documents(folder, labels, documents, len(floats))
        report("vectors")
        _write_vectors(folder / "vectors.bin", floats, space)
        report("quantise")
        run_builder(folder, graph, timeout_s, report)
        (folder / "vectors.bin").unlink()
        if extras is not None:
            extras(folder)
        _finish(folder, space, graph, labels is not None, documents is not None)
        move_into_place(folder, directory, overwrite)
    report("done")


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
            sync(path)
    sync(folder)
