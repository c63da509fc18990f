from __future__ import annotations

import pytest

from stream2llm_rag.retrievers.crawler.dates import date_of
from stream2llm_rag.retrievers.crawler.extract import parse_html


def date(markup: str, url: str = "http://h/") -> str | None:
    return date_of(parse_html(f"<html>{markup}</html>"), url)


@pytest.mark.parametrize(
    "markup",
    [
        '<head><meta property="article:modified_time" content="2023-05-04T10:00:00Z"></head>',
        '<head><meta name="date" content="2023-05-04"></head>',
        '<head><script type="application/ld+json">{"@type": "Article", "dateModified": "2023-05-04"}</script></head>',
        '<head><title>T</title></head><body><p>x</p><time datetime="2023-05-04T08:00">4 May</time></body>',
    ],
)
def test_a_page_says_its_date_in_one_of_many_ways(markup):
    assert date(markup) == "2023-05-04"


def test_an_address_can_say_it():
    assert date("<body><p>x</p></body>", "http://h/2023/05/04/news") == "2023-05-04"


@pytest.mark.parametrize(
    "markup",
    [
        "<body><p>In 2015, on 5 May 2015, something happened.</p></body>",
        '<head><meta name="date" content="9999-99-99"></head>',
        '<head><meta name="date" content="\0\ud800"></head>',
        "<body><time></time><time datetime=''>soon</time></body>",
        "<body><time>yesterday</time> was the fair of 2023-05-04.</body>",
        '<head><meta name="description" content="What happened on 2023-05-04"></head>',
        "<head><style>/* 2023-05-04 */</style><script>updated('2023-05-04')</script></head>",
        "",
    ],
)
def test_what_is_none_gives_none(markup):
    assert date(markup) is None


def test_the_page_stays_as_it_was():
    root = parse_html("<html><head><title>T</title></head><body><time>2023-05-04</time><p>x</p></body></html>")
    date_of(root, "http://h/")
    assert "".join(root.itertext()) == "T2023-05-04x"
