"""The text of a PDF. Pure; runs in an extraction process, within its limits of time and memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pypdf import PdfReader

_MAX_PDF_PAGES = 300


class PdfText(NamedTuple):
    """``title`` and ``date`` (``YYYY-MM-DD``, of its last change or else its making) are what the file says of itself."""

    title: str | None
    text: str
    date: str | None = None


def read_pdf(body: bytes) -> PdfText:
    """Title and text of a PDF, of its first 300 pages; the errors of pypdf where it is broken, or locked by a password."""
    from pypdf import PdfReader  # takes a third of a second, and most crawls meet no PDF

    reader = PdfReader(io.BytesIO(body))
    pages = (reader.pages[i] for i in range(min(len(reader.pages), _MAX_PDF_PAGES)))
    text = "\n\n".join(page.extract_text() for page in pages)
    said = reader.metadata
    title = " ".join(str(said.title or "").split()) if said else ""
    return PdfText(title or None, text, _date(reader) if said else None)


def _date(reader: PdfReader) -> str | None:
    try:
        date = reader.metadata.modification_date or reader.metadata.creation_date
    except ValueError:
        return None
    return date.date().isoformat() if date else None
