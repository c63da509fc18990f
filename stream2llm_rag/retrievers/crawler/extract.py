"""From the bytes of a page to its outline and its text. Pure; runs in an extraction process, never in the crawler's own.

lxml and trafilatura hold the GIL for up to seconds on one page, and in threads they can crash the process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from urllib.parse import unquote

import lxml.html  # type: ignore[import-untyped]
import trafilatura
from lxml.etree import ParserError, XPath, _Element  # type: ignore[import-untyped]
from w3lib.encoding import html_to_unicode

from stream2llm_rag.retrievers.crawler.dates import date_of
from stream2llm_rag.retrievers.crawler.lists import entries_of
from stream2llm_rag.retrievers.crawler.pages import Link, Outline, Page
from stream2llm_rag.retrievers.crawler.relevance import scores_of
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, canonicalize, path_of, strip_tracking

_MAX_LINKS = 2_000  # of one page, in document order
_MAX_TITLE_CHARS = 300
_MAX_LABEL_CHARS = 300  # some links hold a whole card, or a table
_VISIBLE = XPath("//body//text()[not(ancestor::script or ancestor::style or ancestor::noscript or ancestor::template)]")
_ANCHORS = XPath("//a[@href] | //area[@href]")
_TITLES = (XPath("//head/title"), XPath("//h1"))
_BASE = XPath("string(//base/@href)")
_CANONICAL = XPath("//link[translate(@rel, 'CANOIL', 'canoil')='canonical']/@href")
_MARKDOWN_HEADING = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)


def decode(page: Page) -> str:
    """The body as text, by byte order mark, header, ``<meta>``, then UTF-8 or, where it is not that, Windows-1252."""
    text: str
    for content_type in (page.content_type, None):
        with suppress(LookupError, UnicodeError):  # codecs of Python's that are no charsets: "undefined", "hex", "idna"
            _, text = html_to_unicode(content_type, page.body, auto_detect_fun=_guess_encoding)
            return text
    return page.body.decode(_guess_encoding(page.body), "replace")


def _guess_encoding(body: bytes) -> str:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"  # what browsers fall back to in most places (WHATWG HTML, 13.2.3.2)
    return "utf-8"


def outline_of(page: Page, text: str, question: str | None = None) -> Outline:
    """Title, claimed address and links of a decoded page; the links scored, where there is a question."""
    if page.is_list:
        return Outline(links=_scored(entries_of(page), question))
    if not page.is_html:
        heading = _MARKDOWN_HEADING.search(text) if page.media_type != "text/plain" else None
        return Outline(title=_clean_title(heading[1]) if heading else None)
    root = parse_html(text)
    if root is None:
        return Outline()
    base = _BASE(root)
    base_url = (canonicalize(base, base=page.url) if base else None) or page.url
    links = _scored(_links(root, base_url), question)
    return Outline(_title(root), _canonical(root, base_url), links, date_of(root, page.url))


def parse_html(text: str) -> _Element | None:
    """The tree of an HTML text; None where there is nothing to parse."""
    # As bytes, because lxml refuses a str with an XML encoding declaration, which XHTML has.
    parser = lxml.html.HTMLParser(encoding="utf-8")
    try:
        return lxml.html.document_fromstring(text.replace("\0", "").encode("utf-8", "replace"), parser=parser)
    except ParserError:
        return None


def _title(root: _Element) -> str | None:
    for titles in _TITLES:
        for element in titles(root):
            if title := _clean_title("".join(element.itertext())):
                return title
    return None


def _clean_title(text: str) -> str:
    return " ".join(text.split())[:_MAX_TITLE_CHARS]


def _canonical(root: _Element, base_url: CanonicalUrl) -> CanonicalUrl | None:
    for href in _CANONICAL(root):
        return canonicalize(href, base=base_url)
    return None


def _links(root: _Element, base_url: CanonicalUrl) -> dict[CanonicalUrl, list[str]]:
    """What the page says about each link: its texts, wherever it stands."""
    words: dict[CanonicalUrl, list[str]] = {}
    by_reference: dict[str, list[str]] = {}
    for element in _ANCHORS(root):
        by_reference.setdefault(element.get("href").partition("#")[0].strip(), []).extend(_label(element))
    for reference, labels in by_reference.items():
        url = canonicalize(reference, base=base_url) if reference else None
        if url is not None and ((link := strip_tracking(url)) in words or len(words) < _MAX_LINKS):
            words.setdefault(link, []).extend(labels)
    return words


def _label(element: _Element) -> Iterator[str]:
    yield "".join(element.itertext())[:_MAX_LABEL_CHARS]
    for name in ("title", "aria-label", "alt"):
        yield from (value[:_MAX_LABEL_CHARS] for value in [element.get(name)] if value)
    yield from (alt[:_MAX_LABEL_CHARS] for image in element.iter("img") if (alt := image.get("alt")))


def _address_words(url: CanonicalUrl) -> str:
    return unquote(path_of(url))


def _scored(links: dict[CanonicalUrl, list[str]], question: str | None) -> tuple[Link, ...]:
    if question is None:
        return tuple(map(Link, islice(links, _MAX_LINKS)))
    scores = scores_of(question, [" ".join([_address_words(url), *words]) for url, words in links.items()])
    return tuple(sorted(map(Link, links, scores), key=lambda link: -link.score)[:_MAX_LINKS])


def trafilatura_text(html: str, url: str) -> str:
    """The main text of an HTML page, or what :func:`resiliparse_text` has where trafilatura sees no main text."""
    return trafilatura.extract(html, url=url, favor_recall=True, include_comments=False) or resiliparse_text(html, url)


def resiliparse_text(html: str, url: str) -> str:
    """The main text of an HTML page, found by quick rules, or all that its body shows where they leave nothing."""
    from resiliparse.extract.html2text import extract_plain_text  # most crawls never need it

    text: str = extract_plain_text(html, main_content=True, alt_texts=False)
    return text or visible_text(html)


def visible_text(html: str) -> str:
    """All text that the body of an HTML page shows, a line for each stretch of it."""
    root = parse_html(html)
    stretches = [] if root is None else _VISIBLE(root)
    return "\n".join(line for stretch in stretches if (line := " ".join(stretch.split())))
