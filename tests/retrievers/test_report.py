from __future__ import annotations

import pytest

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.retrievers.report import CrawlTally, HostReport


def event(kind: str, source: str, category: str | None = None, *came_from: str) -> RetrievalEvent:
    steps = tuple(RetrievalEvent("download", source, 0.0, 1.0, category=each) for each in came_from)
    return RetrievalEvent(kind, source, 0.0, 1.0, category=category, steps=steps)


def report(*events: RetrievalEvent):
    tally = CrawlTally()
    for each in events:
        tally.note(each)
    return tally.report()


def test_each_host_has_its_counts_and_all_have_a_sum():
    found = report(
        event("fetch", "https://a/x", None, "network"),
        event("fetch", "https://a/y", None, "cache"),
        event("skip", "https://a/z", "robots"),
        event("skip", "http://b:8080/", "http_status", "confirmed"),
        event("skip", "http://b:8080/?q", "http_status"),
        event("skip", "http://b:8080/2"),
        event("retry", "http://[::1]:80/x"),
        event("list", "http://[::1]:80/sitemap.xml"),
    )
    assert dict(found.hosts) == {
        "a": HostReport(num_fetched=2, skipped={"robots": 1}, num_from_cache=1),
        "b:8080": HostReport(skipped={"http_status": 2, "other": 1}, num_from_cache=1),
        "[::1]:80": HostReport(num_retries=1, num_lists=1),
    }
    assert found.total == HostReport(2, {"http_status": 2, "robots": 1, "other": 1}, 1, 1, 2)
    assert found.total.num_skipped == 4


@pytest.mark.parametrize(
    ("kind", "source"), [("snapshot", "DiskANN"), ("fetch", "a retriever"), ("search", "the search"), ("hop", "http://a/")]
)
def test_what_is_no_crawl_s_is_passed_over(kind, source):
    assert report(event(kind, source)) is None


def test_it_can_be_written_as_json():
    plain = report(event("skip", "http://a/", "robots")).to_dict()
    assert plain["total"] == plain["hosts"]["a"]
    assert plain["total"]["skipped"] == {"robots": 1}
    assert plain["total"]["num_skipped"] == 1
