"""Vectors for the DiskANN benchmark: clustered Gaussians of a low intrinsic dimension, and texts of Python's documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream2llm_rag.retrievers.diskann import LatentSemanticEmbedding

Array = npt.NDArray[Any]
_LATENT_DIMS = 24


@dataclass(frozen=True)
class Data:
    name: str
    vectors: Array
    queries: Array
    metric: str

    def exact(self, top_k: int) -> Array:
        """Row numbers of the nearest of each query, by computing all distances."""
        products = self.queries @ self.vectors.T
        if self.metric == "l2":
            products -= (self.vectors**2).sum(1) / 2
        elif self.metric == "cosine":
            products /= np.linalg.norm(self.vectors, axis=1)
        return np.argsort(-products, axis=1, kind="stable")[:, :top_k]


def clustered(num_points: int, num_dims: int, num_queries: int, metric: str, seed: int = 0) -> Data:
    """Gaussian clusters in 24 dimensions, projected to ``num_dims`` at random, with a little noise; queries from the same."""
    dice = np.random.default_rng(seed)
    latent = min(num_dims, _LATENT_DIMS)
    centers = dice.normal(size=(max(10, num_points // 200), latent))
    total = num_points + num_queries
    points = centers[dice.integers(0, len(centers), total)] + 0.7 * dice.normal(size=(total, latent))
    vectors = (points @ dice.normal(size=(latent, num_dims)) / np.sqrt(latent)).astype(np.float32)
    vectors += 0.1 * dice.normal(size=vectors.shape).astype(np.float32)
    return Data(f"clustered {num_points:,} x {num_dims}", vectors[:num_points], vectors[num_points:], metric)


def documentation(num_dims: int, num_queries: int) -> Data:
    """Sections of Python's documentation as latent semantic vectors; queries are sections that are held out."""
    from stream2llm_rag.demo.corpus import documentation_sections

    documents = documentation_sections()
    texts = [document.text for document in documents]
    vectors = LatentSemanticEmbedding.fit(texts, num_dims).embed(texts)
    held_out = np.random.default_rng(0).permutation(len(vectors))[:num_queries]
    kept = np.setdiff1d(np.flatnonzero(vectors.any(1)), held_out)
    name = f"documentation {len(kept):,} x {vectors.shape[1]}"
    return Data(name, vectors[kept], vectors[held_out], "cosine")
