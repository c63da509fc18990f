from __future__ import annotations

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler import WebCrawler
from stream2llm_rag.retrievers.crawler.quota import HostQuota

from .conftest import crawl


def test_pages_on_their_way_count_until_they_fail():
    quota = HostQuota(2)
    quota.start("a")
    quota.start("a")
    assert not quota.has_room("a")
    assert quota.has_room("b")
    assert not quota.end("a", is_page=False)
    assert quota.has_room("a")
    assert not quota.end("a", is_page=True)
    quota.start("a")
    assert quota.end("a", is_page=True)
    assert not quota.has_room("a")


def test_without_a_limit_there_is_always_room():
    quota = HostQuota(None)
    for _ in range(1_000):
        quota.start("a")
        assert not quota.end("a", is_page=True)
    assert quota.has_room("a")


@pytest.mark.usefixtures("warm", "leaves_nothing")
class TestCrawl:
    async def test_each_host_gives_as_many_as_it_may_and_others_take_the_rest(self, site, other_site, crawler_on):
        site.page("/", *(f"/{i}" for i in range(9)), *(other_site.url(f"/{i}") for i in range(9)))
        for i in range(9):
            site.page(f"/{i}", text=f"Page {i} of one.")
            other_site.page(f"/{i}", text=f"Page {i} of the other.")
        allowed = [site.host, other_site.host]
        settings = {"scope": "any", "allow_private_hosts": allowed, "obey_robots": False}
        result = await crawl(crawler_on("/", max_pages=12, max_pages_per_host=3, **settings))
        assert sorted(source.split("/")[2] for source in result.sources) == sorted([site.host] * 3 + [other_site.host] * 3)
        assert len(site.requests) == len(other_site.requests) == 3
        assert result.deltas[-1].num_remaining == 0

    async def test_a_page_that_fails_is_no_page_of_its_host(self, site, crawler_on):
        site.page("/", "/gone", "/a", "/b")
        site.page("/a")
        site.page("/b")
        result = await crawl(crawler_on("/", max_pages_per_host=2, concurrency=1, order="breadth"))
        assert result.paths(site) == {"/", "/a"}
        assert result.skipped == {site.url("/gone"): "HTTP 404"}

    async def test_a_redirect_to_a_host_that_has_given_all_is_named(self, site, other_site, crawler_on):
        site.page("/", text="The only one.")
        other_site.redirect("/", site.url("/more"))
        settings = {"allow_private_hosts": [site.host, other_site.host], "concurrency": 1, "order": "breadth"}
        result = await crawl(crawler_on("/", other_site.url("/"), max_pages_per_host=1, **settings))
        assert result.sources == [site.url("/")]
        [skipped] = [event for event in result.events if event.kind == "skip"]
        assert skipped.category == "host_limit"
        assert skipped.detail == f"it redirects to {site.url('/more')}, whose host has given all that one may"


@pytest.mark.parametrize("most", [0, -1, 1.5, "3", True])
def test_what_is_no_limit_is_refused(most):
    with pytest.raises(InvalidInputError, match="max_pages_per_host is a whole number"):
        WebCrawler(["http://h/"], max_pages_per_host=most)
