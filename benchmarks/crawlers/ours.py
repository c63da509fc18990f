"""WebCrawler: ``python -m benchmarks.crawlers.ours TASK``."""

from __future__ import annotations

import asyncio

from benchmarks.crawlers.common import USER_AGENT, Outcome, Task, Watch, given_task
from stream2llm_rag.retrievers.crawler import SearchHit, WebCrawler

_WARM_UP = "warm up"


class Start:
    """Sends the first stream to pages that are not there but warm the extraction processes, the next one to the entrance."""

    def __init__(self, task: Task) -> None:
        self._task = task

    async def search(self, query: str) -> list[SearchHit]:
        """Where to start."""
        if query == _WARM_UP:
            return [SearchHit(f"http://{host}/warm-up") for host in self._task.hosts[: self._task.num_extractors]]
        return [SearchHit(self._task.entrance)]


async def crawl(task: Task, order: str = "relevance") -> Outcome:
    """Read the site."""
    crawler = WebCrawler(
        search=Start(task),
        order=order,
        scope="any",
        max_pages=task.num_pages,
        max_depth=100,
        max_total_bytes=10**9,
        timeout_s=600.0,
        concurrency=task.concurrency,
        per_host_concurrency=task.per_host_concurrency,
        num_extractors=task.num_extractors,
        allow_private_hosts=task.hosts,
        user_agent=USER_AGENT,
        extractor=f"benchmarks.crawlers.common:{task.extractor}_text",
    )
    async with crawler:
        async for _ in crawler.stream(_WARM_UP):
            pass
        watch = Watch(task)
        async for delta in crawler.stream(task.question):
            for document in delta.documents:
                watch.page(document.text)
        return await watch.stop()


if __name__ == "__main__":
    asyncio.run(crawl(given_task())).print()
