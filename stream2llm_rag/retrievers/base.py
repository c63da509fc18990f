"""What a retriever is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from stream2llm_rag.documents import ContextDelta


@runtime_checkable
class StreamingRetriever(Protocol):
    """Finds context for a question, piece by piece.

    The iterator's end is the end of retrieval. Whoever iterates calls ``aclose()`` on it, where it has one, as soon as no more
    is wanted: an implementation then lets go of its sockets and workers before ``aclose`` returns. A failure is raised as
    :class:`~stream2llm_rag.errors.RetrievalError`.
    """

    def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """Start retrieval for ``query``. Many streams of one retriever may run at once."""
        ...
