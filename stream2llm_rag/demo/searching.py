"""Python's documentation, found by vector search: a context that is refined while it streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.demo.topics import Topic
from stream2llm_rag.retrievers.base import StreamingRetriever

COMPLEXITY = 120


class DocumentationIndex:
    """Searches the index in ``directory``, which stores its own embedding; each hop ``Settings.delay_s`` seconds slower.

    The index is small and lies in memory, where a search takes a millisecond: the delay stands for a store that is not at hand.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @asynccontextmanager
    async def retrievers(self, topics: Sequence[Topic], settings: Settings) -> AsyncIterator[list[StreamingRetriever]]:
        """A retriever for each topic, all over one index, which is open as long as the block lasts."""
        from stream2llm_rag.retrievers.diskann import DiskANNIndex, DiskANNRetriever, LatentSemanticEmbedding

        embedding = LatentSemanticEmbedding.load(self._directory)
        with DiskANNIndex.open(self._directory, hop_delay_s=settings.delay_s) as index:
            retriever = DiskANNRetriever(index, embedding, top_k=settings.max_pages, complexity=COMPLEXITY)
            yield [retriever for _ in topics]
