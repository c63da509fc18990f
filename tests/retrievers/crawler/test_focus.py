"""What a crawl fetches first, keeps and leaves out, given its question."""

from __future__ import annotations

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler import WebCrawler

from .conftest import Result, read

QUESTION = "How do I cancel a task?"
ANSWER = "To cancel a task, call its cancel method. " * 30


async def ask(crawler: WebCrawler) -> Result:
    async with crawler:
        return await read(crawler.stream(QUESTION))


def library(site) -> None:
    names = [f"shelf-{i}" for i in range(30)]
    links = "".join(f'<a href="/{name}">{name}</a>' for name in [*names, "about"]).replace(">about<", ">How to cancel a task<")
    site.answer("/", f"<title>Library</title><p>Welcome.</p>{links}")
    for name in names:
        site.page(f"/{name}")
    site.page("/about", text=ANSWER)


async def test_the_link_that_promises_an_answer_is_followed_first(site, crawler_on):
    library(site)
    result = await ask(crawler_on("/", concurrency=1))
    assert [site.url("/"), site.url("/about")] == result.sources[:2]
    assert result.documents[1].score > result.documents[2].score == 0


async def test_breadth_first_pays_no_heed_to_the_question(site, crawler_on):
    library(site)
    result = await ask(crawler_on("/", concurrency=1, order="breadth"))
    assert result.sources[1] == site.url("/shelf-0")
    assert {document.score for document in result.documents} == {None}


async def test_pages_below_the_threshold_are_left_out_and_named(site, crawler_on):
    library(site)
    result = await ask(crawler_on("/", min_relevance=0.2, max_pages=5))
    assert result.paths(site) == {"/", "/about"}  # the first says itself where to read about cancelling
    assert len(result.skipped) == 30
    assert set(result.skipped.values()) == {"its relevance of 0.00 is below 0.2"}


async def test_a_long_page_is_cut_to_its_best_passages(site, crawler_on):
    filler = "".join(f"<p>{'Lorem ipsum dolor sit amet. ' * 28}</p>" for _ in range(20))
    site.answer("/", f"<title>Long</title>{filler}<p>{ANSWER}</p>{filler}")
    [document] = (await ask(crawler_on("/", max_page_tokens=300))).documents
    assert "cancel" in document.text
    assert "Lorem" not in document.text
    assert document.metadata["is_cut"] is True


def sitemap(*urls: str, element: str = "url") -> str:
    return f"<x>{''.join(f'<{element}><loc>{url}</loc></{element}>' for url in urls)}</x>"


async def test_the_pages_of_a_sitemap_are_seeds_and_it_is_no_document(site, crawler_on):
    site.answer("/sitemap.xml", sitemap("/more.xml", element="sitemap"), content_type="application/xml")
    site.answer("/more.xml", sitemap("/tasks", "/cancel-a-task", "/third.xml"), content_type="text/xml")
    site.answer("/third.xml", sitemap("/never"), content_type="text/xml")
    for path in ("/tasks", "/cancel-a-task", "/never"):
        site.page(path)
    result = await ask(crawler_on("/sitemap.xml", max_depth=0, concurrency=1))
    assert result.sources == [site.url("/cancel-a-task"), site.url("/tasks")]
    assert [event.detail for event in result.events if event.kind == "list"] == ["it lists 1 pages", "it lists 3 pages"]
    assert result.skipped == {site.url("/third.xml"): "its content type is text/xml, which is not text"}


async def test_xml_that_lists_nothing_is_named(site, crawler_on):
    site.page("/")
    site.answer("/feed", "<svg/>", content_type="application/xml")
    result = await ask(crawler_on("/", "/feed"))
    assert result.skipped == {site.url("/feed"): "it is XML, but no sitemap or feed that lists a page"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"order": "depth"}, "'breadth'"),
        ({"min_relevance": 1.5}, "between 0 and 1"),
        ({"max_page_tokens": 0}, "at least 1"),
        ({"order": "breadth", "max_page_tokens": 10}, "need order='relevance'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(crawler_on, settings, reason):
    with pytest.raises(InvalidInputError, match=reason):
        crawler_on("/", **settings)
