"""An embedding that needs no download: TF-IDF and a truncated singular value decomposition, fitted on the documents themselves.

A stand-in for a real embedding model, for demos, tests and a first try: it knows which words occur together in these documents,
and nothing else of any language (latent semantic analysis, Deerwester et al., 1990).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import IndexFormatError, InvalidInputError, MissingExtraError, RetrievalError
from stream2llm_rag.retrievers.diskann.metrics import Floats

VOCABULARY_FILE = "embedding.json"
ARRAYS_FILE = "embedding.npz"
FORMAT_VERSION = 1
DEFAULT_NUM_DIMS = 128

_MAX_WORDS = 50_000
_ROWS_AT_ONCE = 2048
_SETTINGS: dict[str, Any] = {"sublinear_tf": True, "strip_accents": "unicode", "token_pattern": r"(?u)\b\w+\b"}
_SEED = 0


class LatentSemanticEmbedding:
    """Text as vectors of length 1, for the metric ``cosine``. Made by :meth:`fit` or :meth:`load`; to be called with a
    question.

    ``vocabulary`` has a word for each of ``weights`` f32[num_words] (their IDF) and for each column of ``components``
    f32[num_dims, num_words].
    """

    def __init__(self, vocabulary: Sequence[str], weights: Floats, components: Floats) -> None:
        vectorizer = _vectorizer(vocabulary=list(vocabulary))
        vectorizer.idf_ = weights
        self._vocabulary = list(vocabulary)
        self._weights = weights
        self._components = components
        self._vectorizer = vectorizer

    @classmethod
    def fit(cls, texts: Sequence[str], num_dims: int = DEFAULT_NUM_DIMS) -> LatentSemanticEmbedding:
        """Learn from ``texts``. With few or short ones, ``num_dims`` is as many as they allow. InvalidInputError without
        words.
        """
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _vectorizer(max_features=_MAX_WORDS)
        try:
            matrix = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise InvalidInputError(f"An embedding cannot be fitted to {len(texts)} texts: {error}") from error
        possible = max(1, min(num_dims, min(matrix.shape) - 1))
        if min(matrix.shape) == 1:
            components = np.ones((1, matrix.shape[1]), np.float32)
        else:
            components = TruncatedSVD(possible, random_state=_SEED).fit(matrix).components_
        words = vectorizer.get_feature_names_out().tolist()
        return cls(words, vectorizer.idf_.astype(np.float32), components.astype(np.float32))

    @property
    def num_dims(self) -> int:
        """Dimensions of a vector."""
        return len(self._components)

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors of ``texts``, f32[n, num_dims], of length 1; zeros for a text without a known word."""
        blocks = [self._embed(texts[first : first + _ROWS_AT_ONCE]) for first in range(0, len(texts), _ROWS_AT_ONCE)]
        return np.vstack(blocks) if blocks else np.empty((0, self.num_dims), np.float32)

    def __call__(self, question: str) -> Floats:
        """The vector of a question, f32[num_dims]. RetrievalError where it has no word in common with the documents."""
        vector: Floats = self.embed([question])[0]
        if not vector.any():
            raise RetrievalError(f"No word of the question {question!r} occurs in the documents. Ask in their words.")
        return vector

    def save(self, directory: Path) -> None:
        """Write two files into ``directory``: the words as JSON, the numbers as arrays."""
        stored = {"version": FORMAT_VERSION, "vocabulary": self._vocabulary}
        (directory / VOCABULARY_FILE).write_text(json.dumps(stored), "utf-8")
        np.savez(directory / ARRAYS_FILE, weights=self._weights, components=self._components)

    @classmethod
    def load(cls, directory: Path) -> LatentSemanticEmbedding:
        """The embedding that was saved in ``directory``. IndexFormatError where there is none, or it is damaged."""
        path = directory / VOCABULARY_FILE
        if not path.exists():
            raise IndexFormatError(
                f"{path} is missing: the index was built with vectors of your own. Embed questions as you did these."
            )
        try:
            stored = json.loads(path.read_text("utf-8"))
            content = io.BytesIO((directory / ARRAYS_FILE).read_bytes())  # a damaged file would be left open
            with np.load(content, allow_pickle=False) as arrays:
                weights, components = arrays["weights"], arrays["components"]
            _check(stored, weights, components)
            return cls(stored["vocabulary"], weights, components)
        except MissingExtraError:
            raise
        except Exception as error:  # a damaged archive raises whatever zipfile, zlib, numpy or json do
            raise IndexFormatError(f"{path}: the embedding cannot be read: {error!r}. Build the index again.") from error

    def _embed(self, texts: Sequence[str]) -> Floats:
        projected = self._vectorizer.transform(texts) @ self._components.T
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        known = norms > 1e-6
        unit: Floats = np.divide(projected, norms, out=np.zeros_like(projected), where=known).astype(np.float32)
        return unit


def embed_documents(documents: Sequence[Document], num_dims: int = DEFAULT_NUM_DIMS) -> tuple[LatentSemanticEmbedding, Floats]:
    """Fit an embedding to ``documents``, and their vectors. InvalidInputError for a document without any word."""
    texts = [f"{document.title or ''}\n{document.text}" for document in documents]
    embedding = LatentSemanticEmbedding.fit(texts, num_dims)
    vectors = embedding.embed(texts)
    if len(empty := np.flatnonzero(~vectors.any(1))):
        raise InvalidInputError(f"Document {documents[empty[0]].source!r} has no word in it. Leave it out.")
    return embedding, vectors


def _vectorizer(**settings: Any) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise MissingExtraError("scikit-learn, which the embedding needs,", "diskann") from error
    return TfidfVectorizer(dtype=np.float32, **_SETTINGS, **settings)


def _check(stored: Any, weights: Any, components: Any) -> None:
    vocabulary = stored["vocabulary"]
    if stored["version"] != FORMAT_VERSION or not all(isinstance(word, str) for word in vocabulary):
        raise ValueError("another version")
    if weights.shape != (len(vocabulary),) or components.ndim != 2 or components.shape[1] != len(vocabulary):
        raise ValueError(f"{len(vocabulary)} words, weights {weights.shape}, components {components.shape}")
    if not (np.isfinite(weights).all() and np.isfinite(components).all()):
        raise ValueError("numbers that are not finite")
