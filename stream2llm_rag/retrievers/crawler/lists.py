"""Sitemaps and feeds: lists of pages in XML. Pure; runs in an extraction process.

Reads sitemaps and their indexes (sitemaps.org, gzipped or not), RSS and Atom. Entities are not expanded and nothing is loaded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from lxml import etree  # type: ignore[import-untyped]

from stream2llm_rag.retrievers.crawler.pages import Page
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, canonicalize, strip_tracking

MAX_ENTRIES = 10_000  # a sitemap may have 50,000 (sitemaps.org); more of them take seconds to read
_MAX_UNPACKED_BYTES = 50_000_000  # what sitemaps.org allows
_MAX_WORDS_CHARS = 500
_ENTRIES = ("{*}url", "{*}sitemap", "{*}item", "{*}entry")
_WORDS = ("{*}title", "{*}description", "{*}summary")


def entries_of(page: Page) -> dict[CanonicalUrl, list[str]]:
    """The pages that a sitemap or feed lists, in its order, with the words that it says about each; none where it is no XML."""
    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True)
    try:
        root = etree.fromstring(_unpacked(page.body), parser)
    except (etree.XMLSyntaxError, zlib.error):
        return {}
    entries: dict[CanonicalUrl, list[str]] = {}
    for entry in () if root is None else root.iter(*_ENTRIES):
        address = _address(entry)
        url = canonicalize(address, base=page.url) if address else None
        if url is not None:
            entries.setdefault(strip_tracking(url), []).extend(_words(entry))
            if len(entries) >= MAX_ENTRIES:
                break
    return entries


def _unpacked(body: bytes) -> bytes:
    if not body.startswith(b"\x1f\x8b"):
        return body
    return zlib.decompressobj(wbits=31).decompress(body, _MAX_UNPACKED_BYTES)


def _address(entry: etree._Element) -> str:
    """What the entry points to: ``<loc>`` of a sitemap, ``<link>`` of RSS, ``<link href>`` of Atom; else empty."""
    for child in entry.iterchildren("{*}loc", "{*}link"):
        if child.get("rel", "alternate") == "alternate" and (address := (child.get("href") or child.text or "").strip()):
            return str(address)
    return ""


def _words(entry: etree._Element) -> Iterator[str]:
    for child in entry.iterchildren(*_WORDS):
        yield (child.text or "")[:_MAX_WORDS_CHARS]
