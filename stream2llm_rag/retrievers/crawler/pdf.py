"""The text of a PDF. Pure; runs in an extraction process, within its limits of time and memory."""

from __future__ import annotations

import io
from typing import NamedTuple

_MAX_PDF_PAGES = 300


class PdfText(NamedTuple):
    """``title`` is what the file says of itself, if anything."""

    title: str | None
    text: str


def read_pdf(body: bytes) -> PdfText:
    """Title and text of a PDF, of its first 300 pages; the errors of pypdf where it is broken, or locked by a password."""
    from pypdf import PdfReader  # takes a third of a second, and most crawls meet no PDF

    reader = PdfReader(io.BytesIO(body))
    pages = (reader.pages[i] for i in range(min(len(reader.pages), _MAX_PDF_PAGES)))
    text = "\n\n".join(page.extract_text() for page in pages)
    title = " ".join(str(reader.metadata.title or "").split()) if reader.metadata else ""
    return PdfText(title or None, text)
