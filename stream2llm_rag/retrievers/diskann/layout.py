"""DiskANN's files on disk: what they hold, and whether that adds up.

All numbers are little-endian. ``ann_disk.index`` starts with a sector of 4096 bytes that says how the nodes lie in the sectors
behind it; a node is its vector, its degree (u32), and the ids of its neighbours (u32 each). ``ann_pq_pivots.bin`` and
``ann_pq_compressed.bin`` hold the product quantisation: 256 centres for each chunk of the dimensions, and a byte for each chunk
of each vector. Written by the Rust and the C++ DiskANN (diskannpy-rust 0.49, diskannpy 0.7), which differ in the header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from stream2llm_rag.errors import IndexFormatError
from stream2llm_rag.retrievers.diskann.matrices import Array, read_bytes, read_matrix, wrong

SECTOR_BYTES = 4096
NUM_CENTERS = 256
MAX_DEGREE = 512  # of DiskANN's builders
DEFAULT_PREFIX = "ann"
_RUST_HEADER_BYTES = 96  # Rust writes the length of its header where C++ writes the number of its fields
_RUST_VERSION = 1

Writer: TypeAlias = Literal["cpp", "rust"]


class Geometry(NamedTuple):
    """Where a node lies and what it consists of. A NamedTuple, which compiled code takes as it is.

    ``nodes_per_sector`` is 0 where a node takes ``sectors_per_node`` of its own. ``element_bytes`` is 4 for float32, 1 for
    uint8, and -1 for int8, which has the same size.
    """

    num_points: int
    num_dims: int
    node_bytes: int
    nodes_per_sector: int
    sectors_per_node: int
    vector_bytes: int
    max_degree: int
    element_bytes: int


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Product quantisation. ``centers`` f32[num_dims, 256], ``mean`` f32[num_dims], ``chunks`` i64[num_chunks + 1]."""

    centers: Array
    mean: Array
    chunks: Array


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one index, read and checked. ``codes`` u8[num_points, num_chunks].

    ``starts`` i64[m] are the nodes that a search may start from; of several the one whose row of ``start_vectors``
    f32[m, num_dims] is nearest. ``max_norm`` is there where C++ built it for inner products.
    """

    path: Path
    writer: Writer
    geometry: Geometry
    quantizer: Quantizer
    codes: Array
    starts: Array
    start_vectors: Array
    max_norm: float | None


@dataclass(frozen=True, slots=True)
class Metadata:
    """``ann_metadata.bin`` of the Python packages: their metric by its name in C++ or Rust, None where there is no file."""

    dtype: np.dtype[Any]
    metric: str


_DTYPES = (np.float32, np.int8, np.uint8)
_METRICS = {"cpp": ("l2", "mips", "cosine"), "rust": ("l2", "cosine", "cosinenormalized", "innerproduct")}


def read_layout(directory: Path, *, prefix: str = DEFAULT_PREFIX, dtype: np.dtype[Any] | None = None) -> Layout:
    """Read the index ``prefix`` in ``directory``. ``dtype`` is that of its vectors where no metadata file says it.

    Raises IndexFormatError for what is missing, does not add up, or is of a kind that cannot be searched here.
    """
    path = directory / f"{prefix}_disk.index"
    header, writer = _read_header(path)
    metadata = read_metadata(directory, prefix, writer)
    dtype = metadata.dtype if metadata is not None else np.dtype(dtype or np.float32)
    geometry = _geometry(path, header, dtype)
    for suffix, what in (("_disk.index_pq_pivots.bin", "quantised vectors"), ("_pq_pivots.bin_rotation_matrix.bin", "OPQ")):
        if (directory / f"{prefix}{suffix}").exists():
            raise wrong(path, f"the index has {what}, which is not supported. Build it without")
    quantizer = _read_quantizer(directory / f"{prefix}_pq_pivots.bin", geometry)
    codes_path = directory / f"{prefix}_pq_compressed.bin"
    codes = read_matrix(codes_path, np.uint8, whole_file=True)
    expected = (geometry.num_points, len(quantizer.chunks) - 1)
    if codes.shape != expected:
        raise wrong(
            codes_path, f"{codes.shape[0]} codes of {codes.shape[1]} bytes, but {expected[0]} of {expected[1]} belong here"
        )
    starts, start_vectors = _read_starts(path, geometry, header.medoid)
    return Layout(path, writer, geometry, quantizer, codes, starts, start_vectors, _read_max_norm(path))


def read_metadata(directory: Path, prefix: str, writer: Writer) -> Metadata | None:
    """What the Python packages note beside an index; None where there is no such file."""
    path = directory / f"{prefix}_metadata.bin"
    if not path.exists():
        return None
    numbers = np.frombuffer(read_bytes(path, 0, None), np.uint64) if path.stat().st_size == 32 else np.empty(0, np.uint64)
    if len(numbers) != 4 or numbers[0] >= len(_DTYPES) or numbers[1] >= len(_METRICS[writer]):
        raise wrong(path, "it does not hold a type, a metric, a number of points and one of dimensions, as known here")
    return Metadata(np.dtype(_DTYPES[int(numbers[0])]), _METRICS[writer][int(numbers[1])])


@dataclass(frozen=True, slots=True)
class _Header:
    num_points: int
    num_dims: int
    medoid: int
    node_bytes: int
    nodes_per_sector: int
    file_bytes: int


def _read_header(path: Path) -> tuple[_Header, Writer]:
    if not path.is_file():
        raise IndexFormatError(
            f"There is no index: {path} is missing. Build one with DiskANNIndex.build, or name the folder "
            "(and the prefix) of one."
        )
    num_fields, num_columns = struct.unpack("<II", read_bytes(path, 0, 8))
    if num_columns != 1 or num_fields not in (9, 12, _RUST_HEADER_BYTES):
        raise wrong(path, f"it starts with {num_fields} x {num_columns}, which is no header of DiskANN's disk indexes")
    is_rust = num_fields == _RUST_HEADER_BYTES
    fields = [int(number) for number in np.frombuffer(read_bytes(path, 8, 8 * (12 if is_rust else num_fields)), "<u8")]
    num_points, num_dims, medoid, node_bytes, nodes_per_sector, num_frozen, _, has_reorder_data = fields[:8]
    file_bytes = fields[8] if is_rust else fields[-1]
    if num_frozen or has_reorder_data:
        raise wrong(path, "frozen points and reorder data are not supported")
    if is_rust and (fields[9] != 0 or fields[10] != SECTOR_BYTES or fields[11] != _RUST_VERSION):
        raise wrong(path, f"associated data {fields[9]}, sector {fields[10]} and version {fields[11]}; 0, 4096 and 1 are known")
    if (actual := path.stat().st_size) != file_bytes:
        raise wrong(path, f"it has {actual} bytes, and its header says {file_bytes}: it is cut off, or from another index")
    return _Header(num_points, num_dims, medoid, node_bytes, nodes_per_sector, file_bytes), "rust" if is_rust else "cpp"


def _geometry(path: Path, header: _Header, dtype: np.dtype[Any]) -> Geometry:
    if not (0 < header.num_points < 2**32 and 0 < header.num_dims < 2**16 and header.medoid < header.num_points):
        raise wrong(path, f"{header.num_points} points of {header.num_dims} dimensions, search starting at {header.medoid}")
    vector_bytes = header.num_dims * dtype.itemsize
    max_degree = (header.node_bytes - vector_bytes) // 4 - 1
    if not 1 <= max_degree <= MAX_DEGREE or header.node_bytes != vector_bytes + 4 + 4 * max_degree:
        raise wrong(path, f"nodes of {header.node_bytes} bytes do not hold {header.num_dims} values of {dtype} and neighbours")
    nodes_per_sector = SECTOR_BYTES // header.node_bytes
    if header.nodes_per_sector != nodes_per_sector:
        raise wrong(
            path, f"{header.nodes_per_sector} nodes in a sector, but {nodes_per_sector} of {header.node_bytes} bytes fit"
        )
    sectors_per_node = 1 if nodes_per_sector else -(-header.node_bytes // SECTOR_BYTES)
    num_sectors = -(-header.num_points // nodes_per_sector) if nodes_per_sector else header.num_points * sectors_per_node
    if header.file_bytes != (1 + num_sectors) * SECTOR_BYTES:
        raise wrong(
            path, f"{header.num_points} nodes take {num_sectors} sectors and the header one, not {header.file_bytes} bytes"
        )
    element_bytes = -1 if dtype == np.int8 else dtype.itemsize
    return Geometry(
        header.num_points,
        header.num_dims,
        header.node_bytes,
        nodes_per_sector,
        sectors_per_node,
        vector_bytes,
        max_degree,
        element_bytes,
    )


def _read_quantizer(path: Path, geometry: Geometry) -> Quantizer:
    offsets = read_matrix(path, np.uint64)[:, :1].ravel()
    if len(offsets) not in (4, 5):
        raise wrong(path, f"{len(offsets)} sections, but 4 or 5 belong here")
    centers = read_matrix(path, np.float32, int(offsets[0]))
    mean = read_matrix(path, np.float32, int(offsets[1])).ravel()
    chunks = read_matrix(path, np.uint32, int(offsets[-2])).ravel().astype(np.int64)
    if centers.shape != (NUM_CENTERS, geometry.num_dims) or mean.shape != (geometry.num_dims,):
        raise wrong(path, f"centres {centers.shape} and mean {mean.shape} do not fit {geometry.num_dims} dimensions")
    if len(chunks) < 2 or chunks[0] != 0 or chunks[-1] != geometry.num_dims or (np.diff(chunks) <= 0).any():
        raise wrong(path, f"its chunks {chunks[:8].tolist()}... do not divide {geometry.num_dims} dimensions")
    if not (np.isfinite(centers).all() and np.isfinite(mean).all()):
        raise wrong(path, "a centre or the mean is not finite")
    return Quantizer(np.ascontiguousarray(centers.T), mean, chunks)


def _read_starts(path: Path, geometry: Geometry, medoid: int) -> tuple[Array, Array]:
    """Where searches start. C++ notes several where it built the graph in parts (``_medoids.bin``, ``_centroids.bin``)."""
    medoids_path = path.with_name(f"{path.name}_medoids.bin")
    vectors_path = path.with_name(f"{path.name}_centroids.bin")
    if not (medoids_path.exists() and vectors_path.exists()):
        return np.array([medoid], np.int64), np.zeros((1, geometry.num_dims), np.float32)
    starts = read_matrix(medoids_path, np.uint32, whole_file=True).ravel().astype(np.int64)
    vectors = read_matrix(vectors_path, np.float32, whole_file=True)
    if len(starts) == 0 or vectors.shape != (len(starts), geometry.num_dims) or starts.max() >= geometry.num_points:
        raise wrong(medoids_path, f"{len(starts)} nodes to start from, with vectors {vectors.shape}")
    return starts, vectors


def _read_max_norm(path: Path) -> float | None:
    norm_path = path.with_name(f"{path.name}_max_base_norm.bin")
    if not norm_path.exists():
        return None
    norm = read_matrix(norm_path, np.float32, whole_file=True)
    if norm.shape != (1, 1) or not 0 < norm[0, 0] < np.inf:
        raise wrong(norm_path, "it does not hold one norm above 0")
    return float(norm[0, 0])
