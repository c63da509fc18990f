from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from stream2llm_rag.documents import Append, Document
from stream2llm_rag.retrievers.crawler import CrawlStream, WebCrawler
from stream2llm_rag.retrievers.crawler.pool import ExtractionPool

from .misbehaving import PATH
from .site import Site, serve


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serve() as each:
        yield each


@pytest.fixture
async def other_site() -> AsyncIterator[Site]:
    async with serve() as each:
        yield each


@pytest.fixture
def crawler_on(site: Site) -> Callable[..., WebCrawler]:
    """A crawler with one quick extraction process that may read the site; seeds are its paths or whole URLs."""

    def build(*seeds: str, **settings: Any) -> WebCrawler:
        urls = [site.url(seed) if seed.startswith("/") else seed for seed in seeds]
        return WebCrawler(urls, **{"num_extractors": 1, "extractor": PATH, "allow_private_hosts": [site.host], **settings})

    return build


class _WarmPool(ExtractionPool):
    """Outlives the crawlers that use it."""

    async def settle(self) -> set[int]:
        """The ids of the processes, once they have started: one that was ended with its page is replaced in the background."""
        return {(await worker._ready_process()).pid for worker in self._workers}

    def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@pytest.fixture(scope="module")
async def _warm_pool() -> AsyncIterator[ExtractionPool]:
    pool = _WarmPool(num_workers=1, timeout_s=60.0, extractor=PATH)
    ExtractionPool.open(pool)
    await pool.settle()
    yield pool
    await ExtractionPool.aclose(pool)


@pytest.fixture
def warm(_warm_pool: ExtractionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crawlers of this module share an extraction process: for tests of what comes before extraction."""
    monkeypatch.setattr("stream2llm_rag.retrievers.crawler.settings.ExtractionPool", lambda **settings: _warm_pool)


@pytest.fixture
async def leaves_nothing(site: Site, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fails a test after which a task, a process, or a connection to the site is left."""
    warm_pool = request.getfixturevalue("_warm_pool") if "warm" in request.fixturenames else None
    process = psutil.Process()

    async def children() -> set[int]:
        kept = await warm_pool.settle() if warm_pool else set()
        return {child.pid for child in process.children()} - kept

    before = await children()
    yield
    after = await children()
    assert [task for task in asyncio.all_tasks() if "/stream2llm_rag/" in task.get_coro().cr_code.co_filename] == []
    assert after == before
    assert [each for each in process.net_connections() if each.raddr and each.raddr.port == site.port] == []


class Result:
    """All that came of a crawl."""

    def __init__(self, deltas: list[Append]) -> None:
        self.deltas = deltas
        self.documents: list[Document] = [document for delta in deltas for document in delta.documents]
        self.sources = [document.source for document in self.documents]
        self.events = [event for delta in deltas for event in delta.events]
        self.skipped = {event.source: event.detail for event in self.events if event.kind == "skip"}

    def paths(self, site: Site) -> set[str]:
        return {source.removeprefix(site.url("")) for source in self.sources}


async def read(stream: CrawlStream) -> Result:
    return Result([delta async for delta in stream])


async def crawl(crawler: WebCrawler) -> Result:
    async with crawler:
        return await read(crawler.stream("why?"))
