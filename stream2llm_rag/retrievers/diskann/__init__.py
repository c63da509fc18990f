"""A vector search on disk that streams: documents go out as soon as they will most likely stay. Needs the ``diskann`` extra.

``build`` makes an index (``builder`` runs DiskANN's own, ``staging`` puts the folder in its place). ``opening`` gathers what a
folder holds and ``layout`` reads DiskANN's files; ``kernels`` is the search, compiled, and ``readers`` bring its nodes;
``stability`` decides what may be shown early and ``calibration`` fits that to an index. ``index`` is what users hold,
``retriever`` makes a StreamingRetriever of it.
"""

import importlib.util

from stream2llm_rag.errors import MissingExtraError

if importlib.util.find_spec("numba") is None:
    raise MissingExtraError("numba, which DiskANNIndex needs,", "diskann")

from stream2llm_rag.retrievers.diskann.builder import BuildProgress, GraphParameters
from stream2llm_rag.retrievers.diskann.embedding import LatentSemanticEmbedding
from stream2llm_rag.retrievers.diskann.index import DiskANNIndex
from stream2llm_rag.retrievers.diskann.retriever import DiskANNRetriever
from stream2llm_rag.retrievers.diskann.stability import Snapshot, Thresholds

__all__ = [
    "BuildProgress",
    "DiskANNIndex",
    "DiskANNRetriever",
    "GraphParameters",
    "LatentSemanticEmbedding",
    "Snapshot",
    "Thresholds",
]
