from __future__ import annotations

import pytest

from stream2llm_rag.retrievers.crawler.extract import decode, outline_of, resiliparse_text, trafilatura_text, visible_text
from stream2llm_rag.retrievers.crawler.pages import Link, Outline, Page

URL = "http://h/a/page"


def html(markup: str, content_type: str = "text/html; charset=utf-8") -> Page:
    return Page(URL, content_type, markup.encode())


def outline(markup: str) -> Outline:
    return outline_of(html(markup), markup)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=iso-8859-1", "<p>Grüße</p>".encode("latin-1")),
        ("text/html", '<meta charset="windows-1251"><p>Ж</p>'.encode("cp1251")),
        ("text/html", "<p>Grüße</p>".encode()),
        ("text/html", "<p>Grüße</p>".encode("cp1252")),
        ("text/html; charset=latin-1", "\ufeff<p>Grüße</p>".encode()),
        ("text/html; charset=no-such-thing", "<p>Grüße</p>".encode()),
        *((f"text/html; charset={codec}", "<p>Grüße</p>".encode()) for codec in ("undefined", "hex", "rot13", "idna", "zip")),
        ("text/html; charset=undefined", '<meta charset="windows-1251"><p>Ж</p>'.encode("cp1251")),
        ("text/html; charset=hex", b'<meta charset="undefined">' + "<p>Grüße</p>".encode()),
        ("text/plain", "<p>Grüße</p>".encode("utf-16")),
    ],
)
def test_the_charset_is_that_of_the_mark_the_header_the_meta_or_a_guess(content_type, body):
    text = decode(Page(URL, content_type, body))
    assert text.endswith(("<p>Grüße</p>", "<p>Ж</p>"))


def test_a_wrong_charset_costs_letters_and_not_the_page():
    page = Page(URL, "text/html; charset=utf-8", "<p>Straße</p>".encode("latin-1"))
    assert decode(page) == "<p>Stra\ufffde</p>"


def test_links_are_absolute_canonical_and_come_once_in_order():
    links = outline(
        '<a href="b">1</a><a href="/c#x">2</a><a href="b#y">3</a><a href="/c?utm_source=me">4</a><a href="mailto:x@y">5</a>'
        '<a href="">6</a><a>7</a><area href="http://other/"><a href="http://[bad/">8</a>'
    ).links
    assert [link.url for link in links] == ["http://h/a/b", "http://h/c", "http://other/"]


def test_links_follow_the_base_element():
    assert outline('<head><base href="/docs/"></head><a href="x">1</a>').links == (Link("http://h/docs/x"),)


def test_the_number_of_links_is_limited():
    assert len(outline("".join(f'<a href="{i}">{i}</a>' for i in range(5_000))).links) == 2_000


@pytest.mark.parametrize(
    ("markup", "title"),
    [
        ("<head><title> A \n title </title></head><h1>B</h1>", "A title"),
        ("<h1>Only <b>this</b></h1>", "Only this"),
        ("<head><title></title></head><p>x</p>", None),
        ("<svg><title>icon</title></svg><h1>H</h1>", "H"),
    ],
)
def test_the_title(markup, title):
    assert outline(markup).title == title


def test_the_claimed_address():
    assert outline('<head><link rel="Canonical" href="/x#y"></head><p>x').canonical == "http://h/x"
    assert outline('<head><link rel="stylesheet" href="/x"></head><p>x').canonical is None


@pytest.mark.parametrize(
    "markup", ["", "   ", "<", "<!-- -->", "\0\0", "<?xml version='1.0' encoding='x'?>", "<" * 5_000, "<div>" * 5_000]
)
def test_odd_markup_has_an_outline_and_some_text(markup):
    assert isinstance(outline(markup), Outline)
    assert isinstance(trafilatura_text(markup, URL), str)
    assert isinstance(resiliparse_text(markup, URL), str)


def test_xhtml_with_an_encoding_declaration_is_read():
    page = Page(URL, "application/xhtml+xml", b"<?xml version='1.0' encoding='utf-8'?><html><body><h1>T</h1></body></html>")
    assert page.is_html
    assert outline_of(page, decode(page)).title == "T"


def test_the_main_text_comes_without_navigation():
    prose = "Cancelling a task raises CancelledError inside its coroutine at the next opportunity. " * 5
    markup = f"<html><body><nav><a href='/'>Home</a></nav><article><h1>Tasks</h1><p>{prose}</p></article></body></html>"
    for extract in (trafilatura_text, resiliparse_text):
        text = extract(markup, URL)
        assert prose.strip() in text
        assert "Home" not in text


def test_where_the_one_finds_no_main_text_the_other_may(monkeypatch):
    monkeypatch.setattr("trafilatura.extract", lambda *_, **__: None)
    markup = "<body><nav><a href='/'>Home</a></nav><main><p>The text of the page.</p></main></body>"
    assert trafilatura_text(markup, URL) == "The text of the page."


def test_a_page_without_main_text_gives_what_it_shows():
    markup = "<html><body><script>var x = 1;</script><style>p {}</style><span>seen</span><!-- not --></body></html>"
    assert visible_text(markup) == "seen"
    assert trafilatura_text(markup, URL) == resiliparse_text(markup, URL) == "seen"


def test_markdown_has_its_heading_for_a_title_and_plain_text_has_none():
    text = "intro\n# The heading\n"
    assert outline_of(Page(URL, "text/markdown", b""), text).title == "The heading"
    assert outline_of(Page(URL, "text/markdown", b""), f"# \n#\n\n{text}").title == "The heading"  # empty ones are none
    assert outline_of(Page(URL, "text/plain", b""), text) == Outline()
