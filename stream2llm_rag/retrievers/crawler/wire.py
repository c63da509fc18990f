"""What the crawler and its extraction processes say to each other: frames of a length and that many bytes.

JSON, not pickle: the other side has just read a page that a stranger wrote, and its word is not executed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

from stream2llm_rag.retrievers.crawler.pages import NO_FOCUS, Focus, Link, Outline, Page
from stream2llm_rag.retrievers.crawler.similarity import SIGNATURE_BYTES
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has imported what it needs and waits for a page."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text of the page: the last word on it. The rest is as in :class:`.Extracted`."""

    text: str
    score: float | None = None
    is_cut: bool = False
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Nothing could be had from the page, or the process is of no use; ``reason`` says why."""

    reason: str


Reply: TypeAlias = Ready | Outline | Text | Failure


def frame(payload: bytes) -> bytes:
    """``payload`` with its length before it."""
    return LENGTH.pack(len(payload)) + payload


def encode_page(page: Page, focus: Focus = NO_FOCUS) -> bytes:
    """A page as two frames: what is known of it and looked for in it, and its body."""
    head = [page.url, page.content_type, focus.question, focus.max_page_tokens]
    return frame(json.dumps(head).encode()) + frame(page.body)


def decode_page(head: bytes, body: bytes) -> tuple[Page, Focus]:
    """The inverse of :func:`encode_page`, given the two payloads."""
    url, content_type, question, max_page_tokens = json.loads(head)
    return Page(CanonicalUrl(url), content_type, body), Focus(question, max_page_tokens)


def encode_reply(reply: Reply) -> bytes:
    """A reply as one frame."""
    fields: dict[str, Any] = {}
    match reply:
        case Outline(title, canonical, links, date):
            fields = {"title": title, "canonical": canonical, "links": links, "date": date}
        case Text(text, score, is_cut, signature):
            fields = {"text": text, "score": score, "is_cut": is_cut, "signature": signature and signature.hex()}
        case Failure(reason):
            fields = {"reason": reason}
    return frame(json.dumps([type(reply).__name__, fields]).encode())


def decode_reply(payload: bytes) -> Reply:
    """The inverse of :func:`encode_reply`. ValueError for anything else."""
    match json.loads(payload):
        case ["Ready", {}]:
            return Ready()
        case [
            "Outline",
            {
                "title": str() | None as title,
                "canonical": str() | None as canonical,
                "links": list(links),
                "date": str() | None as date,
            },
        ]:
            return Outline(title, CanonicalUrl(canonical) if canonical else None, tuple(map(_decode_link, links)), date)
        case [
            "Text",
            {
                "text": str(text),
                "score": float() | None as score,
                "is_cut": bool(is_cut),
                "signature": str() | None as signature,
            },
        ]:
            return Text(text, score, is_cut, _decode_signature(signature))
        case ["Failure", {"reason": str(reason)}]:
            return Failure(reason)
        case _:
            raise ValueError("not a reply of an extraction process")


def _decode_signature(signature: str | None) -> bytes | None:
    decoded = None if signature is None else bytes.fromhex(signature)
    if decoded is not None and len(decoded) != SIGNATURE_BYTES:
        raise ValueError(f"a signature of {len(decoded)} bytes")
    return decoded


def _decode_link(link: Any) -> Link:
    match link:
        case [str(url), float(score)]:
            return Link(CanonicalUrl(url), score)
        case _:
            raise ValueError("not a link of an outline")
