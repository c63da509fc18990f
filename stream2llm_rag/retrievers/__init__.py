"""Retrievers find context for a question and yield it piece by piece.

The crawler is in :mod:`stream2llm_rag.retrievers.crawler`, the vector search in :mod:`stream2llm_rag.retrievers.diskann`, as
each needs an extra.
"""

from stream2llm_rag.retrievers.base import FunctionRetriever, InMemoryRetriever, StreamingRetriever, TimedDelta

__all__ = ["FunctionRetriever", "InMemoryRetriever", "StreamingRetriever", "TimedDelta"]
