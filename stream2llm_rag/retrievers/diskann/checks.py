"""Refuse what a builder or a search would hang on, crash on, or answer wrongly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream2llm_rag.errors import IndexBuildError, IndexFormatError, InvalidInputError
from stream2llm_rag.retrievers.diskann.layout import SECTOR_BYTES, Geometry, Layout
from stream2llm_rag.retrievers.diskann.manifest import Manifest, digest_of
from stream2llm_rag.retrievers.diskann.matrices import Array
from stream2llm_rag.retrievers.diskann.metrics import MAX_NORM, Floats, Metric, norms_of

_ROWS_AT_ONCE = 16_384
_MAX_DIMS = 4096


def require_vectors(vectors: Any, metric: Metric) -> Floats:
    """``vectors`` as C-contiguous f32[n, num_dims]. InvalidInputError for anything that cannot be indexed."""
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        raise InvalidInputError(f"vectors is a matrix with a row for each, all of one length: {error}") from error
    if array.ndim != 2:
        raise InvalidInputError(f"vectors is a matrix with a row for each, but an array of {array.ndim} dimensions came.")
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(f"vectors holds numbers, but an array of {array.dtype} came.")
    num_points, num_dims = array.shape
    if num_points == 0 or not 1 <= num_dims <= _MAX_DIMS:
        raise InvalidInputError(f"An index needs a vector or more, of 1 to {_MAX_DIMS} dimensions, but {array.shape} came.")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(array, np.float32)
    for first in range(0, num_points, _ROWS_AT_ONCE):
        _require_rows(floats[first : first + _ROWS_AT_ONCE], first, metric)
    return floats


def _require_rows(rows: Floats, first: int, metric: Metric) -> None:
    if not np.isfinite(rows).all():
        bad = first + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise InvalidInputError(
            f"Vectors are finite numbers, but row {bad} has NaN or infinity in it (or too much for float32)."
        )
    norms = norms_of(rows)
    if norms.max() > MAX_NORM:
        raise InvalidInputError(
            f"Row {first + int(norms.argmax())} has a norm of {norms.max():.3g}, whose square float32 cannot hold."
        )
    if metric == "cosine" and norms.min() == 0:
        raise InvalidInputError(f"Row {first + int(norms.argmin())} is all zeros: it has no direction, which cosine needs.")


def require_ids(ids: Sequence[int] | Array | None, num_points: int) -> Array | None:
    """``ids`` as i64[num_points]. InvalidInputError for another number of them, for other types, and for duplicates."""
    if ids is None:
        return None
    array = np.asarray(ids)
    if array.shape != (num_points,) or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"ids is a whole number for each of the {num_points} vectors, but {array.dtype} {array.shape} came. "
            "Names go into Document.source."
        )
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise InvalidInputError("ids are numbers up to 2**63 - 1.")
    values, counts = np.unique(array, return_counts=True)
    if len(values) != num_points:
        raise InvalidInputError(f"Each id stands for one vector, but {values[counts > 1][0]} came more than once.")
    return array.astype(np.int64)


def require_space(directory: Path, needed_bytes: int) -> None:
    """IndexBuildError where the disk has less room."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise IndexBuildError(
            f"The index takes up to {needed_bytes / 1e6:.0f} MB in {directory} while it is built, "
            f"and {free / 1e6:.0f} MB are free."
        )


def verify_digests(directory: Path, manifest: Manifest) -> None:
    """IndexFormatError where a file is not the one that was built."""
    for name, digest in manifest.digests.items():
        path = directory / name
        if not path.is_file():
            raise IndexFormatError(f"{path} is missing. Build the index again.")
        if digest_of(path) != digest:
            raise IndexFormatError(f"{path} was changed since it was built. Build the index again.")


def verify_nodes(layout: Layout) -> None:
    """IndexFormatError for a vector that is not finite, or neighbours that are too many or not in the index."""
    geometry = layout.geometry
    sectors = np.memmap(layout.path, np.uint8, "r", offset=SECTOR_BYTES)
    nodes_at_once = _ROWS_AT_ONCE // max(1, geometry.nodes_per_sector) * max(1, geometry.nodes_per_sector)
    for first in range(0, geometry.num_points, nodes_at_once):
        number = min(nodes_at_once, geometry.num_points - first)
        _verify_block(layout.path, geometry, _nodes(sectors, geometry, first, number), first)


def _nodes(sectors: Array, geometry: Geometry, first: int, number: int) -> Array:
    """Nodes from ``first`` on, u8[number, node_bytes]. ``first`` starts a sector."""
    per_sector, node_bytes = geometry.nodes_per_sector, geometry.node_bytes
    if per_sector == 0:
        stride = geometry.sectors_per_node * SECTOR_BYTES
        block = sectors[first * stride : (first + number) * stride].reshape(number, stride)
        return np.ascontiguousarray(block[:, :node_bytes])
    start = first // per_sector * SECTOR_BYTES
    num_sectors = -(-number // per_sector)
    block = sectors[start : start + num_sectors * SECTOR_BYTES].reshape(num_sectors, SECTOR_BYTES)
    packed = np.ascontiguousarray(block[:, : per_sector * node_bytes])
    return packed.reshape(num_sectors * per_sector, node_bytes)[:number]


def _verify_block(path: Path, geometry: Geometry, nodes: Array, first: int) -> None:
    if geometry.element_bytes == 4:
        vectors = np.ascontiguousarray(nodes[:, : geometry.vector_bytes]).view(np.float32)
        _raise_first(path, ~np.isfinite(vectors).all(1), first, "has a vector that is not finite")
    edges = np.ascontiguousarray(nodes[:, geometry.vector_bytes :]).view(np.uint32)
    degrees, neighbours = edges[:, 0], edges[:, 1:]
    _raise_first(path, degrees > geometry.max_degree, first, "says that it has more neighbours than a node can have")
    used = np.arange(geometry.max_degree) < degrees[:, None]
    _raise_first(path, (used & (neighbours >= geometry.num_points)).any(1), first, "has a neighbour that is not in the index")


def _raise_first(path: Path, is_wrong: Any, first: int, what: str) -> None:
    if is_wrong.any():
        raise IndexFormatError(f"{path}: node {first + int(is_wrong.argmax())} {what}. Build the index again.")
