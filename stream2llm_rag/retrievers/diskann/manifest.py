"""``index.json``: what an index of ours is, beside DiskANN's files. It is written last; where it is, the index is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stream2llm_rag.errors import IndexFormatError
from stream2llm_rag.retrievers.diskann.metrics import METRICS, Metric, Space

FILE_NAME = "index.json"
FORMAT_VERSION = 1
_READ_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class Manifest:
    """``digests`` has the BLAKE2b digest of each file by its name. ``build`` says what it was built with, for people."""

    metric: Metric
    num_points: int
    num_dims: int
    max_norm: float
    has_labels: bool
    has_documents: bool
    digests: Mapping[str, str] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION

    @property
    def space(self) -> Space:
        """The metric and its vectors."""
        return Space(self.metric, self.num_dims, self.max_norm)

    def write(self, directory: Path) -> None:
        """Write ``index.json``."""
        (directory / FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """What ``directory`` holds; None where something else built it. IndexFormatError for what does not fit together."""
        path = directory / FILE_NAME
        if not path.exists():
            return None
        try:
            manifest = cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise IndexFormatError(f"{path}: it is no description of an index: {error}") from error
        if manifest.version != FORMAT_VERSION:
            raise IndexFormatError(
                f"{path}: version {manifest.version!r}, but {FORMAT_VERSION} is known. Build the index again."
            )
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        numbers = (self.num_points, self.num_dims)
        is_whole = (
            self.metric in METRICS
            and all(type(number) is int and number > 0 for number in numbers)
            and isinstance(self.max_norm, (int, float))
            and 0 < self.max_norm < float("inf")
            and type(self.has_labels) is type(self.has_documents) is bool
            and isinstance(self.build, Mapping)
            and isinstance(self.digests, Mapping)
            and all(isinstance(digest, str) and Path(name).name == name for name, digest in self.digests.items())
        )
        if not is_whole:
            raise IndexFormatError(f"{path}: its fields do not describe an index. Build the index again.")


def digest_of(path: Path) -> str:
    """The BLAKE2b digest of a file, 128 bits in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
