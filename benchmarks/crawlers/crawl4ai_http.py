"""crawl4ai without a browser, with the extractor in a process pool: ``python -m benchmarks.crawlers.crawl4ai_http TASK``.

Its ``prefetch`` mode, which brings the HTML and the links of a page and leaves out its own Markdown: the quickest that it has.
"""

from __future__ import annotations

import asyncio

from crawl4ai import AsyncWebCrawler, CacheMode, CrawlerRunConfig, HTTPCrawlerConfig
from crawl4ai.async_crawler_strategy import AsyncHTTPCrawlerStrategy
from crawl4ai.async_logger import AsyncLogger
from crawl4ai.deep_crawling import BFSDeepCrawlStrategy

from benchmarks.crawlers.common import USER_AGENT, Outcome, Pool, Task, Watch, given_task


async def crawl(task: Task, pool: Pool) -> Outcome:
    """Read the site."""
    strategy = AsyncHTTPCrawlerStrategy(HTTPCrawlerConfig(headers={"User-Agent": USER_AGENT}), max_connections=task.concurrency)
    config = CrawlerRunConfig(
        deep_crawl_strategy=BFSDeepCrawlStrategy(max_depth=100, include_external=True),
        prefetch=True,
        stream=True,
        cache_mode=CacheMode.BYPASS,
        check_robots_txt=True,
        semaphore_count=task.concurrency,
        verbose=False,
    )
    async with AsyncWebCrawler(crawler_strategy=strategy, logger=AsyncLogger(verbose=False)) as crawler:
        watch = Watch(task)

        async def extract(html: str, url: str) -> None:
            watch.page(await pool.text(html, url))

        async with asyncio.TaskGroup() as pages:
            async for result in await crawler.arun(task.entrance, config=config):
                if result.success:
                    pages.create_task(extract(result.html, result.url))
        return await watch.stop()


def main() -> None:
    task = given_task()
    pool = Pool(task)
    asyncio.run(crawl(task, pool)).print()
    pool.close()


if __name__ == "__main__":
    main()
