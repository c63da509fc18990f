"""Three metrics over one kind of index: vectors are stored so that the order by Euclidean distance is the order asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from stream2llm_rag.errors import InvalidInputError

Metric: TypeAlias = Literal["l2", "cosine", "inner_product"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Floats: TypeAlias = npt.NDArray[np.float32]

MAX_NORM = float(np.sqrt(np.finfo(np.float32).max)) / 4  # two vectors of it are no further apart than float32 can square


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A query as the index stores vectors, f32[num_stored_dims], and its Euclidean norm before that."""

    vector: Floats
    norm: float


@dataclass(frozen=True, slots=True)
class Space:
    """A metric over vectors of ``num_dims`` dimensions.

    ``cosine`` stores vectors of length 1. ``inner_product`` stores x / M and sqrt(1 - |x|^2 / M^2) as one dimension more,
    where M, ``max_norm``, is the largest norm of all (Bachrach et al., RecSys 2014): all lie on a sphere, and the nearest are
    those of the largest inner product.
    """

    metric: Metric
    num_dims: int
    max_norm: float = 1.0

    @property
    def num_stored_dims(self) -> int:
        """Dimensions of a vector in the index."""
        return self.num_dims + (self.metric == "inner_product")

    def store(self, vectors: Floats) -> Floats:
        """``vectors`` f32[n, num_dims] as f32[n, num_stored_dims]. Finite, and for ``cosine`` none of them zero."""
        if self.metric == "l2":
            return vectors
        norms = norms_of(vectors)
        if self.metric == "cosine":
            return (vectors / norms[:, None]).astype(np.float32)
        scaled = vectors / self.max_norm
        rest = np.sqrt(np.maximum(0.0, 1.0 - (norms / self.max_norm) ** 2))
        return np.hstack([scaled, rest[:, None]]).astype(np.float32)

    def prepare(self, query: Any) -> PreparedQuery:
        """A query of ``num_dims`` numbers. InvalidInputError for others, NaN, infinity, no direction, too great a norm."""
        vector = _as_floats(query)
        if vector.shape != (self.num_dims,):
            raise InvalidInputError(f"The index holds vectors of {self.num_dims} dimensions, but a query {vector.shape} came.")
        if not np.isfinite(vector).all():
            raise InvalidInputError("A query is finite numbers, but it has NaN or infinity in it.")
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        if self.metric == "l2":
            if norm > MAX_NORM:
                raise InvalidInputError(f"A query has a norm of at most {MAX_NORM:.3g}, but one of {norm:.3g} came.")
            return PreparedQuery(vector, norm)
        if norm == 0:
            raise InvalidInputError(f"A query of zeros has no direction, which {self.metric} needs. Ask with another vector.")
        direction = (vector / norm).astype(np.float32)
        rest = np.zeros(self.num_stored_dims - self.num_dims, np.float32)
        return PreparedQuery(np.concatenate([direction, rest]), norm)

    def distances(self, squared: Floats, query: PreparedQuery) -> npt.NDArray[np.float64]:
        """Squared distances in the index as distances in the metric, smaller is nearer.

        ``l2``: squared, as DiskANN gives them. ``cosine``: 1 - cosine. ``inner_product``: the negated product.
        """
        exact = squared.astype(np.float64)
        if self.metric == "l2":
            return exact
        if self.metric == "cosine":
            return exact / 2
        return (exact / 2 - 1) * (self.max_norm * query.norm)

    def score(self, distance: float) -> float:
        """A distance in the metric as a score, higher is better: negated, the cosine, or the inner product."""
        return 1.0 - distance if self.metric == "cosine" else -distance


def norms_of(vectors: Floats) -> npt.NDArray[np.float64]:
    """Euclidean norm of each row; computed in double precision, in which no float32 overflows."""
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares)


def _as_floats(query: Any) -> Floats:
    try:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(query, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"A query is an array of numbers, but {type(query).__name__} came: {error}") from error
