"""Matrices as DiskANN's files hold them, read with their bounds checked."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stream2llm_rag.errors import IndexFormatError

Array: TypeAlias = npt.NDArray[Any]


def read_matrix(path: Path, dtype: Any, offset: int = 0, *, whole_file: bool = False) -> Array:
    """A matrix in DiskANN's way: u32 rows, u32 columns, then the values by row."""
    num_rows, num_columns = struct.unpack("<II", read_bytes(path, offset, 8))
    num_bytes = num_rows * num_columns * np.dtype(dtype).itemsize
    if whole_file and path.stat().st_size != 8 + num_bytes:
        raise wrong(path, f"{num_rows} x {num_columns} values take {8 + num_bytes} bytes, and it has {path.stat().st_size}")
    values = np.frombuffer(read_bytes(path, offset + 8, num_bytes), dtype)
    return values.reshape(num_rows, num_columns).copy()


def read_bytes(path: Path, offset: int, num_bytes: int | None) -> bytes:
    """Bytes of a file; IndexFormatError where it has fewer, or cannot be read."""
    try:
        size = os.stat(path).st_size
        wanted = size - offset if num_bytes is None else num_bytes
        if offset + wanted > size:
            raise wrong(path, f"{offset + wanted} bytes belong here, but it has {size}: it is cut off")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(wanted)
    except OSError as error:
        raise wrong(path, f"it cannot be read: {error.strerror}") from error


def wrong(path: Path, what: str) -> IndexFormatError:
    """The error for a file that is not what it should be."""
    return IndexFormatError(f"{path}: {what}.")
