"""What the crawler and its extraction processes say to each other: frames of a length and that many bytes.

JSON, not pickle: the other side has just read a page that a stranger wrote, and its word is not executed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

from stream2llm_rag.retrievers.crawler.pages import Outline, Page
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has imported what it needs and waits for a page."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text of the page: the last word on it."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Nothing could be had from the page, or the process is of no use; ``reason`` says why."""

    reason: str


Reply: TypeAlias = Ready | Outline | Text | Failure


def frame(payload: bytes) -> bytes:
    """``payload`` with its length before it."""
    return LENGTH.pack(len(payload)) + payload


def encode_page(page: Page) -> bytes:
    """A page as two frames: what is known of it, and its body."""
    return frame(json.dumps([page.url, page.content_type]).encode()) + frame(page.body)


def decode_page(head: bytes, body: bytes) -> Page:
    """The inverse of :func:`encode_page`, given the two payloads."""
    url, content_type = json.loads(head)
    return Page(CanonicalUrl(url), content_type, body)


def encode_reply(reply: Reply) -> bytes:
    """A reply as one frame."""
    fields: dict[str, Any] = {}
    match reply:
        case Outline(title, canonical, links):
            fields = {"title": title, "canonical": canonical, "links": links}
        case Text(text):
            fields = {"text": text}
        case Failure(reason):
            fields = {"reason": reason}
    return frame(json.dumps([type(reply).__name__, fields]).encode())


def decode_reply(payload: bytes) -> Reply:
    """The inverse of :func:`encode_reply`. ValueError for anything else."""
    match json.loads(payload):
        case ["Ready", {}]:
            return Ready()
        case ["Outline", {"title": str() | None as title, "canonical": str() | None as canonical, "links": list(links)}]:
            return Outline(title, CanonicalUrl(canonical) if canonical else None, tuple(map(CanonicalUrl, links)))
        case ["Text", {"text": str(text)}]:
            return Text(text)
        case ["Failure", {"reason": str(reason)}]:
            return Failure(reason)
        case _:
            raise ValueError("not a reply of an extraction process")
