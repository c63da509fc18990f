"""Which pages become documents: those with text, relevant enough, and not had before. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from stream2llm_rag.documents import Document
from stream2llm_rag.retrievers.crawler.frontier import Target
from stream2llm_rag.retrievers.crawler.pages import Extracted, Page, PageSkippedError, Skip
from stream2llm_rag.retrievers.crawler.trail import Trail


class Choice:
    """The documents of one crawl, as far as it must remember them to know them again."""

    def __init__(self, trail: Trail, *, min_relevance: float) -> None:
        self._trail = trail
        self._min_relevance = min_relevance
        self._sources: dict[bytes, str] = {}  # by digest of the text

    def document(self, target: Target, page: Page, extracted: Extracted) -> Document:
        """The document that a page becomes. PageSkippedError says why it becomes none."""
        outline, text = extracted.outline, extracted.text.strip()
        if not text:
            raise PageSkippedError(Skip.EMPTY, "it has no text")
        if extracted.score is not None and extracted.score < self._min_relevance:
            reason = f"its relevance of {extracted.score:.2f} is below {self._min_relevance:g}"
            raise PageSkippedError(Skip.RELEVANCE, reason)
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._sources:
            raise PageSkippedError(Skip.DUPLICATE, f"it has the same text as {self._sources[digest]}")
        source = self._trail.source_of(page.url, outline)
        self._trail.settle(target, source)
        self._sources[digest] = source
        return Document(text, source, outline.title, extracted.score, _metadata(target, page, extracted))


def _metadata(target: Target, page: Page, extracted: Extracted) -> dict[str, Any]:
    metadata = {"content_type": page.media_type, "num_bytes": len(page.body), "depth": target.depth}
    return {**metadata, "is_cut": True} if extracted.is_cut else metadata
