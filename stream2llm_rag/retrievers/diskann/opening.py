"""What a folder holds, gathered and found to fit together: an index of ours, or one that DiskANN's own tools built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream2llm_rag.errors import IndexFormatError, InvalidInputError
from stream2llm_rag.retrievers.diskann.build import DOCUMENTS_FILE, LABELS_FILE
from stream2llm_rag.retrievers.diskann.layout import Layout, read_layout, read_metadata
from stream2llm_rag.retrievers.diskann.manifest import Manifest
from stream2llm_rag.retrievers.diskann.matrices import Array
from stream2llm_rag.retrievers.diskann.metrics import METRICS, Metric, Space
from stream2llm_rag.retrievers.diskann.store import DocumentStore


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of an index, read. ``labels`` i64[num_points] are its ids, None where these are the numbers of the rows.

    ``manifest`` is None where something else built it; such an index has no ``labels`` and no ``store`` of documents.
    """

    directory: Path
    layout: Layout
    space: Space
    manifest: Manifest | None
    labels: Array | None
    store: DocumentStore | None


def read_contents(directory: Path, prefix: str, metric: Metric | None, dtype: Any) -> Contents:
    """Read the index in ``directory``; see :meth:`DiskANNIndex.open`."""
    manifest = Manifest.read(directory)
    layout = read_layout(directory, prefix=prefix, dtype=None if manifest is not None else _dtype(dtype))
    space = _foreign_space(directory, prefix, layout, metric) if manifest is None else manifest.space
    _require_match(layout, space, manifest)
    has_documents = manifest is not None and manifest.has_documents
    store = DocumentStore(directory / DOCUMENTS_FILE) if has_documents else None
    return Contents(directory, layout, space, manifest, _read_labels(directory, manifest), store)


def _read_labels(directory: Path, manifest: Manifest | None) -> Array | None:
    if manifest is None or not manifest.has_labels:
        return None
    path = directory / LABELS_FILE
    try:
        labels: Array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever NumPy's parser, or the memory it asks for, does
        raise IndexFormatError(f"{path}: it holds no ids: {error}. Build the index again.") from error
    if labels.shape != (manifest.num_points,) or labels.dtype != np.int64:
        raise IndexFormatError(f"{path}: {labels.dtype} {labels.shape}, but {manifest.num_points} ids belong here.")
    return labels


def _dtype(dtype: Any) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    wanted: np.dtype[Any] = np.dtype(dtype)
    if wanted not in (np.float32, np.int8, np.uint8):
        raise InvalidInputError(f"dtype is float32, int8 or uint8, but {dtype!r} came.")
    return wanted


def _foreign_space(directory: Path, prefix: str, layout: Layout, metric: Metric | None) -> Space:
    """The metric of an index that is not ours. Only Euclidean ones, and inner products by C++, are stored in a way known
    here.
    """
    metadata = read_metadata(directory, prefix, layout.writer)
    known: dict[str, Metric] = {"l2": "l2"}
    if layout.max_norm is not None:
        known["mips"] = "inner_product"
    if metadata is not None:
        metric = known.get(metadata.metric)
        if metric is None:
            raise IndexFormatError(
                f"{layout.path}: built by {layout.writer} with metric {metadata.metric!r}; known are {', '.join(known)}."
            )
    if metric not in known.values():
        raise InvalidInputError(
            f"{directory} says nothing about its metric. Write metric= one of {', '.join(known.values())} "
            f"({', '.join(METRICS)} are for indexes that DiskANNIndex.build made)."
        )
    assert metric is not None
    return Space(metric, layout.geometry.num_dims - (metric == "inner_product"), layout.max_norm or 1.0)


def _require_match(layout: Layout, space: Space, manifest: Manifest | None) -> None:
    geometry = layout.geometry
    if geometry.num_dims != space.num_stored_dims or space.num_dims < 1:
        raise IndexFormatError(f"{layout.path}: {geometry.num_dims} dimensions, but {space.num_stored_dims} belong here.")
    if manifest is not None and manifest.num_points != geometry.num_points:
        raise IndexFormatError(f"{layout.path}: {geometry.num_points} points, but {manifest.num_points} belong here.")
