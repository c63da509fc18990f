from __future__ import annotations

import pytest
from prometheus_client import REGISTRY, generate_latest

from .conftest import crawl

pytestmark = pytest.mark.usefixtures("warm", "leaves_nothing")


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"stream2llm:{name}", labels) or 0.0


def counts() -> dict[str, float]:
    return {
        "fetched": value("crawl_outcomes_total", kind="fetch", category=""),
        "robots": value("crawl_outcomes_total", kind="skip", category="robots"),
        "status": value("crawl_outcomes_total", kind="skip", category="http_status"),
        "network": value("crawl_downloads_total", came_from="network"),
        "cache": value("crawl_downloads_total", came_from="cache"),
        "bytes": value("crawl_bytes_total", came_from="cache"),
    }


async def test_what_crawlers_do_is_counted_and_stays_so_when_they_close(site, crawler_on, tmp_path):
    site.answer("/robots.txt", "User-agent: *\nDisallow: /private", content_type="text/plain")
    body = '<p>text</p><a href="/private">x</a><a href="/gone">x</a>'
    site.answer("/", body, headers={"Cache-Control": "max-age=600"})
    before = counts()
    for _ in range(2):
        await crawl(crawler_on("/", cache=tmp_path))
    after = counts()
    grown = {name: after[name] - before[name] for name in after}
    assert grown == {"fetched": 2, "robots": 2, "status": 2, "network": 1, "cache": 1, "bytes": len(body)}
    assert value("crawl_download_seconds_total") > 0
    assert value("num_crawlers") == 0
    assert b"stream2llm:crawl_outcomes_total" in generate_latest(REGISTRY)


async def test_pages_on_their_way_are_shown_while_they_are(site, crawler_on):
    site.page("/a", gated=True)
    site.page("/b", gated=True)
    async with crawler_on("/a", "/b") as crawler:
        stream = crawler.stream("why?")
        await site.until(lambda: site.num_active == 2)
        assert (value("num_crawlers"), value("num_pages_in_flight")) == (1, 2)
        await stream.aclose()
        assert value("num_pages_in_flight") == 0
    assert value("num_crawlers") == 0
