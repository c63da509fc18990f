from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from stream2llm_rag.errors import CrawlError, InvalidInputError
from stream2llm_rag.retrievers.crawler import FunctionSearch, InMemorySearch, SearchHit, SearchProvider, SearxNG
from stream2llm_rag.retrievers.crawler.search import parse_hits

from .conftest import crawl


async def test_a_crawl_starts_from_what_a_search_finds_and_stays_on_its_sites(site, other_site, crawler_on):
    site.page("/found", "/linked", other_site.url("/elsewhere"))
    site.page("/linked")
    provider = InMemorySearch([SearchHit(site.url("/found"), "Found"), SearchHit("mailto:x@y")])
    result = await crawl(crawler_on(search=provider))
    assert result.paths(site) == {"/found", "/linked"}
    assert provider.queries == ["why?"]
    assert [event.detail for event in result.events if event.kind == "search"] == ["it found 1 pages"]


async def test_a_search_that_fails_leaves_the_other_seeds(site, crawler_on):
    site.page("/seed")

    async def broken(query: str) -> None:
        raise OSError("down")

    result = await crawl(crawler_on("/seed", search=FunctionSearch(broken)))
    assert result.paths(site) == {"/seed"}
    assert result.skipped["the search"] == "it failed: down"


@pytest.mark.parametrize(("hits", "reason"), [([], "the search: it found no pages"), (["http://10.0.0.1/"], "private")])
async def test_a_search_that_leads_nowhere_is_named(crawler_on, hits, reason):
    with pytest.raises(CrawlError, match=reason):
        await crawl(crawler_on(search=InMemorySearch([SearchHit(hit) for hit in hits])))


async def test_a_search_that_never_answers_ends_with_the_crawl(crawler_on):
    async def silent(query: str) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(CrawlError, match="the search: it did not answer within the limits of the crawl"):
        await crawl(crawler_on(search=FunctionSearch(silent), timeout_s=0.1))


async def test_searxng_is_asked_for_json_with_the_question(site):
    asked = {}

    async def handler(request: web.Request) -> web.Response:
        asked.update(request.query)
        return web.json_response(
            {"query": "x", "results": [{"url": "http://a/", "title": "A", "content": "…"}, {"url": "http://b/"}]}
        )

    site.pages["/search?language=en&q=why?&format=json"] = handler
    provider = SearxNG(site.url("/"), parameters={"language": "en"})
    assert isinstance(provider, SearchProvider)
    assert await provider.search("why?") == (SearchHit("http://a/", "A"), SearchHit("http://b/"))
    assert asked == {"language": "en", "q": "why?", "format": "json"}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, "", r"search\.formats"),
        (500, "", "HTTP 500"),
        (302, "", "HTTP 302"),
        (200, "<html>", "no JSON"),
        (200, "{}", "NoneType"),
    ],
)
async def test_what_is_wrong_with_an_instance_is_said(site, status, body, reason):
    site.answer("/search?q=why&format=json", body, status=status)
    with pytest.raises(CrawlError, match=reason):
        await SearxNG(site.url("")).search("why")


async def test_an_instance_that_does_not_answer_is_given_up(site):
    site.page("/search?q=why&format=json", gated=True)
    with pytest.raises(CrawlError, match=r"within 0\.05 s"):
        await SearxNG(site.url(""), timeout_s=0.05).search("why")
    with pytest.raises(CrawlError, match="could not be asked"):
        await SearxNG("http://127.0.0.1:1").search("why")


@pytest.mark.parametrize("url", ["", "localhost:8888", "ftp://h/", "http://"])
def test_an_instance_needs_an_address(url):
    with pytest.raises(InvalidInputError, match="localhost:8888"):
        SearxNG(url)


HITS = [{"link": "http://a/", "title": "A"}, "http://b/", {"href": "http://c/", "name": "C"}]


@pytest.mark.parametrize("found", [HITS, tuple(HITS), json.dumps(HITS), {"results": HITS}])
def test_hits_are_read_as_search_tools_write_them(found):
    assert parse_hits(found) == (SearchHit("http://a/", "A"), SearchHit("http://b/"), SearchHit("http://c/", "C"))


@pytest.mark.parametrize("found", [None, 1, "text", [1], [{"title": "A"}], {"hits": []}])
def test_anything_else_is_an_error(found):
    with pytest.raises(CrawlError, match="search"):
        parse_hits(found)
