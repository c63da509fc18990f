"""The reader's end of a crawl."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stream2llm_rag.documents import Append, Document
from stream2llm_rag.errors import CrawlError
from stream2llm_rag.retrievers.crawler.crawl import Crawl


class CrawlStream:
    """The deltas of one crawl, for one reader. The crawl runs from the start, ahead of its reader by a bounded buffer.

    Raises CrawlError, with the documents that came before, where no page came at all, or the crawler was closed first.
    """

    def __init__(self, crawl: Crawl, on_end: Callable[[CrawlStream], None]) -> None:
        self._crawl = crawl
        self._on_end = on_end
        self._documents: list[Document] = []
        self._is_closed = False
        self._task = asyncio.create_task(crawl.run())
        self._task.add_done_callback(self._notice_end)

    def __aiter__(self) -> CrawlStream:
        return self

    async def __anext__(self) -> Append:
        while not self._is_closed:
            if self._crawl.outcomes:
                return self._take()
            if self._task.done():
                self._is_closed = True
                self._raise_failure()
                break
            self._crawl.arrived.clear()
            await self._crawl.arrived.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the crawl. When this returns, its requests are gone, and so is its work in the extraction processes."""
        self._is_closed = True
        self._crawl.outcomes.clear()
        await self.stop()

    async def stop(self) -> None:
        """End the crawl as its crawler closes: the reader still gets what came, and then a CrawlError."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def wake(self) -> None:
        """A host may have room for another page."""
        self._crawl.moved.set()

    @property
    def last_start_s(self) -> float:
        """When it last started a page; minus infinity before its first."""
        return self._crawl.last_start_s

    @property
    def num_in_flight(self) -> int:
        """Pages on their way."""
        return 0 if self._task.done() else self._crawl.num_in_flight

    def _take(self) -> Append:
        outcome = self._crawl.outcomes.popleft()
        self._crawl.moved.set()
        documents = () if outcome.document is None else (outcome.document,)
        self._documents += documents
        return Append(documents, self._crawl.num_remaining, (outcome.event,))

    def _raise_failure(self) -> None:
        if self._task.cancelled():
            raise CrawlError(
                "The crawler was closed before this crawl had ended. Read streams inside its `async with`.", self._documents
            )
        if (broken := self._task.exception()) is not None:
            raise CrawlError(f"The crawl broke off: {broken!r}", self._documents) from broken
        if not self._documents:
            reasons = "".join(f"\n  {seed}: {reason}" for seed, reason in self._crawl.failed_seeds.items())
            raise CrawlError(f"No page could be read, starting from{reasons}")

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        self._crawl.arrived.set()
        self._on_end(self)
