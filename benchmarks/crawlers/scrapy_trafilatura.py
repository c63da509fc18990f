"""Scrapy, with the extractor in a process pool: ``python -m benchmarks.crawlers.scrapy_trafilatura TASK``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.linkextractors import LinkExtractor

from benchmarks.crawlers.common import USER_AGENT, Pool, Task, Watch, given_task

if TYPE_CHECKING:
    from scrapy.http import Response

BREADTH_FIRST = {  # https://docs.scrapy.org/en/latest/faq.html#does-scrapy-crawl-in-breadth-first-or-depth-first-order
    "DEPTH_PRIORITY": 1,
    "SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue",
    "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",
}


class LibrarySpider(scrapy.Spider):
    """Follows every link, and hands every page to the pool."""

    name = "library"

    def __init__(self, task: Task, pool: Pool, **settings: Any) -> None:
        super().__init__(**settings)
        self._task = task
        self._pool = pool
        self._links = LinkExtractor()

    async def start(self) -> AsyncIterator[scrapy.Request]:
        self._watch = Watch(self._task)
        yield scrapy.Request(self._task.entrance)

    async def parse(self, response: Response) -> AsyncIterator[scrapy.Request]:
        for link in self._links.extract_links(response):
            yield scrapy.Request(link.url)
        self._watch.page(await self._pool.text(response.text, response.url))

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> LibrarySpider:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.report, signal=scrapy.signals.spider_closed)
        return spider

    async def report(self) -> None:
        (await self._watch.stop()).print()


def main() -> None:
    task = given_task()
    pool = Pool(task)
    process = CrawlerProcess(
        {
            "USER_AGENT": USER_AGENT,
            "ROBOTSTXT_OBEY": True,
            "CONCURRENT_REQUESTS": task.concurrency,
            "CONCURRENT_REQUESTS_PER_DOMAIN": task.per_host_concurrency,
            "DOWNLOAD_DELAY": 0,
            "COOKIES_ENABLED": False,
            "TELNETCONSOLE_ENABLED": False,
            "LOG_LEVEL": "ERROR",
            **BREADTH_FIRST,
        }
    )
    process.crawl(LibrarySpider, task=task, pool=pool)
    process.start()
    pool.close()


if __name__ == "__main__":
    main()
