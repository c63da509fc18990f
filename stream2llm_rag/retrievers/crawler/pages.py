"""The values that a page goes through: fetched, outlined, or skipped. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

from stream2llm_rag.errors import CrawlError
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl

_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_LIST_TYPES = frozenset(
    {"application/xml", "text/xml", "application/rss+xml", "application/atom+xml", "application/gzip", "application/x-gzip"}
)
_PDF_TYPE = "application/pdf"
_TEXT_TYPES = frozenset({"text/plain", "text/markdown", "text/x-markdown"})


Source: TypeAlias = Literal["network", "cache", "confirmed"]


class Skip(StrEnum):
    """Why pages are left out, in few words, to be counted by. The reason of each page says more."""

    ROBOTS = "robots"
    SCOPE = "scope"
    ADDRESS = "address"
    """It leads where the crawler may not connect to."""
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    """The answer, or the end of the crawl, came first."""
    STATUS = "http_status"
    ANSWER = "invalid_answer"
    REDIRECT = "redirect"
    CONTENT_TYPE = "content_type"
    SIZE = "size"
    """It is too large, or the crawl has read all the bytes that it may."""
    OVERLOADED = "overloaded"
    """Its host asked to be left alone for longer than a crawl waits."""
    HOST_LIMIT = "host_limit"
    """It redirects to a host that has given as many pages as one may."""
    EXTRACTION = "extraction"
    EMPTY = "empty"
    RELEVANCE = "relevance"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    SEARCH = "search"
    """It is no page, but a search that failed."""


class PageSkippedError(CrawlError):
    """One page is left out; the message says why. It ends in an event of the crawl and never reaches its user."""

    def __init__(self, why: Skip, reason: str) -> None:
        super().__init__(reason)
        self.why = why


class TryAgainError(PageSkippedError):
    """A page cannot be had now, but perhaps later: not before ``wait_s`` seconds, where its host said so."""

    def __init__(self, why: Skip, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(why, reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it came: ``content_type`` is the whole header, ``body`` what remains after decompression.

    It ``came_from`` the network, from the cache without asking, or from there after its server confirmed it.
    """

    url: CanonicalUrl
    content_type: str
    body: bytes
    came_from: Source = "network"

    @property
    def media_type(self) -> str:
        """``type/subtype`` in lower case, without parameters."""
        return media_type_of(self.content_type)

    @property
    def is_html(self) -> bool:
        """Whether the page has markup."""
        return self.media_type in _HTML_TYPES

    @property
    def is_pdf(self) -> bool:
        """Whether its body is a PDF."""
        return self.media_type == _PDF_TYPE

    @property
    def is_list(self) -> bool:
        """Whether it is a sitemap or a feed: links to follow, and no text of its own."""
        return self.media_type in _LIST_TYPES


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that points elsewhere. ``location`` is absolute."""

    location: CanonicalUrl


@dataclass(frozen=True, slots=True)
class Focus:
    """What a crawl looks for: links and texts are scored against ``question``, unless it is None.

    Of a page with more than ``max_page_tokens`` (an estimate) only the best passages are kept.
    """

    question: str | None = None
    max_page_tokens: int | None = None


NO_FOCUS = Focus()


class Link(NamedTuple):
    """A link without tracking parameters, and how well what its page says about it answers to the question, from 0 to 1."""

    url: CanonicalUrl
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Outline:
    """What a page says of itself and of others: cheap to get, and had before its text.

    ``canonical`` is the address that it claims for itself (RFC 6596), if any, and ``date`` its date as ``YYYY-MM-DD``.
    ``links`` come once each: best first where there is a question, else in document order.
    """

    title: str | None = None
    canonical: CanonicalUrl | None = None
    links: tuple[Link, ...] = ()
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Extracted:
    """All that was had from a page.

    ``score`` is the relevance of its text, where a question was asked; ``signature`` is that of the whole text before anything
    was cut, where it is long enough (:mod:`.similarity`).
    """

    outline: Outline
    text: str
    score: float | None = None
    is_cut: bool = False
    signature: bytes | None = None


def media_type_of(content_type: str) -> str:
    """``type/subtype`` of a Content-Type header, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_readable(media_type: str, *, may_list: bool = False) -> bool:
    """Whether pages of this type can be turned into text, or, where they ``may_list`` others, into links."""
    return media_type in _HTML_TYPES | _TEXT_TYPES | {_PDF_TYPE} or (may_list and media_type in _LIST_TYPES)
