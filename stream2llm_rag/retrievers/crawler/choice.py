"""Which pages become documents: those with text, relevant enough, and not had before. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from stream2llm_rag.documents import Document
from stream2llm_rag.retrievers.crawler.frontier import Target
from stream2llm_rag.retrievers.crawler.pages import Extracted, Page, PageSkippedError, Skip
from stream2llm_rag.retrievers.crawler.similarity import Signatures
from stream2llm_rag.retrievers.crawler.trail import Trail


class Choice:
    """The documents of one crawl, as far as it must remember them to know them again."""

    def __init__(self, trail: Trail, *, min_relevance: float, max_similarity: float) -> None:
        self._trail = trail
        self._min_relevance = min_relevance
        self._max_similarity = max_similarity
        self._sources: dict[bytes, str] = {}  # by digest of the text
        self._signatures = Signatures()

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
        self._require_new(extracted.signature)
        source = self._trail.source_of(page.url, outline)
        self._trail.settle(target, source)
        self._sources[digest] = source
        if extracted.signature is not None:
            self._signatures.add(extracted.signature, source)
        return Document(text, source, outline.title, extracted.score, _metadata(target, page, extracted))

    def _require_new(self, signature: bytes | None) -> None:
        nearest = None if signature is None else self._signatures.nearest(signature)
        if nearest is not None and nearest.share > self._max_similarity:
            raise PageSkippedError(Skip.NEAR_DUPLICATE, f"{nearest.share:.0%} of its wording is that of {nearest.source}")


def _metadata(target: Target, page: Page, extracted: Extracted) -> dict[str, Any]:
    """What is known of a page beside its text; what it does not say of itself is left out."""
    said = {"canonical_url": extracted.outline.canonical, "date": extracted.outline.date, "is_cut": extracted.is_cut or None}
    return {
        "content_type": page.media_type,
        "num_bytes": len(page.body),
        "depth": target.depth,
        **{name: value for name, value in said.items() if value is not None},
    }
