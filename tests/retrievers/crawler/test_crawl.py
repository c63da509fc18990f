from __future__ import annotations

import asyncio
import time

import pytest

from stream2llm_rag.errors import CrawlError
from stream2llm_rag.retrievers.crawler.crawl import Crawl
from stream2llm_rag.retrievers.crawler.politeness import Politeness
from stream2llm_rag.retrievers.crawler.settings import Limits, Taste
from stream2llm_rag.retrievers.crawler.stream import CrawlStream
from stream2llm_rag.retrievers.crawler.urls import Scope
from stream2llm_rag.retrievers.crawler.visit import Services

LIMITS = Limits(max_pages=9, max_depth=1, max_page_bytes=100, max_total_bytes=100, timeout_s=60.0, concurrency=8)

TASTE = Taste("relevance", min_relevance=0.0, max_page_tokens=None, max_similarity=1.0)


async def test_a_crawl_that_breaks_off_says_so_and_gives_every_slot_back():
    politeness = Politeness(max_active=1, delay_s=0.0)
    broken = asyncio.get_running_loop().create_future()

    async def rules(origin):
        return await broken

    services = Services(fetcher=None, politeness=politeness, pool=None, rules=rules, wake_all=lambda: None)
    crawl = Crawl(["http://a/", "http://b/"], Scope.parse("any", []), LIMITS, services, TASTE, "why?")
    politeness.start("http://b", 0.0)
    stream = CrawlStream(crawl, on_end=lambda stream: None)
    for _ in range(3):
        await asyncio.sleep(0)  # the page of a waits for its rules, that of b for its slot
    # In this order a's page breaks in the very turn of the loop in which b's page is created, which is then cancelled unborn.
    broken.set_exception(ZeroDivisionError("a bug"))
    politeness.end("http://b")
    stream.wake()
    with pytest.raises(CrawlError, match=r"broke off.*a bug"):
        await anext(stream)
    assert [politeness.wait_s(origin, time.monotonic()) for origin in ("http://a", "http://b")] == [0.0, 0.0]
