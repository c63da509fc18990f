"""One page's way from its address to its text, held to the manners of its host."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.retrievers.crawler.fetch import Fetcher, Terms
from stream2llm_rag.retrievers.crawler.frontier import Target
from stream2llm_rag.retrievers.crawler.metrics import CrawlCounters
from stream2llm_rag.retrievers.crawler.pages import (
    Extracted,
    Focus,
    Outline,
    Page,
    PageSkippedError,
    Redirect,
    Skip,
    Source,
    TryAgainError,
)
from stream2llm_rag.retrievers.crawler.politeness import Politeness
from stream2llm_rag.retrievers.crawler.pool import ExtractionPool
from stream2llm_rag.retrievers.crawler.retries import wait_before_retry_s
from stream2llm_rag.retrievers.crawler.robots import RobotsRules
from stream2llm_rag.retrievers.crawler.urls import origin_of

_REMARKS: dict[Source, str] = {"network": "", "cache": ", from the cache", "confirmed": ", as they are in the cache"}


@dataclass(frozen=True, slots=True)
class Services:
    """What the crawls of one crawler share.

    ``rules`` gives the robots rules of an origin; ``wake_all`` tells every crawl that a host may have room again.
    """

    fetcher: Fetcher
    politeness: Politeness
    pool: ExtractionPool
    rules: Callable[[str], Awaitable[RobotsRules]]
    wake_all: Callable[[], None]
    counters: CrawlCounters = field(default_factory=CrawlCounters)


@dataclass(slots=True, eq=False)
class Visit:
    """A page on its way. ``steps`` are what was done for it so far."""

    target: Target
    started_s: float
    steps: list[RetrievalEvent]
    has_turn: bool = True

    @property
    def origin(self) -> str:
        """Whom it is asked of."""
        return origin_of(self.target.url)

    def event(
        self,
        kind: str,
        *,
        source: str | None = None,
        detail: str | None = None,
        title: str | None = None,
        category: str | None = None,
    ) -> RetrievalEvent:
        """What became of it, from its start until now."""
        address, steps = source or self.target.url, tuple(self.steps)
        return RetrievalEvent(kind, address, self.started_s, time.monotonic(), detail, title, category, steps)

    def note(
        self,
        kind: str,
        since_s: float,
        detail: str | None = None,
        *,
        source: str | None = None,
        category: str | None = None,
    ) -> None:
        """Take down a step that ends now."""
        address = source or self.target.url
        self.steps.append(RetrievalEvent(kind, address, since_s, time.monotonic(), detail, category=category))


class Visitor:
    """Fetches the pages of one crawl, each in a turn that its host gives, and has their text extracted."""

    def __init__(self, services: Services, terms: Terms, focus: Focus) -> None:
        self._services = services
        self._terms = terms
        self._focus = focus
        self._met: set[str] = set()  # origins whose robots.txt was told of

    def wait_s(self, origin: str) -> float:
        """Seconds until :meth:`begin` may be called for a page of ``origin``; infinite while it has no slot."""
        return self._services.politeness.wait_s(origin, time.monotonic())

    def begin(self, target: Target) -> Visit:
        """Take a turn of the target's host; :meth:`end_turn` must follow."""
        visit = Visit(target, time.monotonic(), list(target.steps))
        self._services.politeness.start(visit.origin, visit.started_s)
        return visit

    def end_turn(self, visit: Visit) -> None:
        """Give the turn back, once."""
        if visit.has_turn:
            visit.has_turn = False
            self._services.politeness.end(visit.origin)
            self._services.wake_all()

    async def fetch(self, visit: Visit) -> Page | Redirect:
        """Ask for the page, and end the turn. PageSkippedError or TryAgainError says why there is none."""
        try:
            self._require_open(visit)
            await self._require_allowed(visit)
            return await self._download(visit)
        except TryAgainError as failed:
            failed.wait_s = wait_before_retry_s(visit.target.num_retries, failed.wait_s, random.random())  # noqa: S311 - no secret
            self._services.politeness.overloaded(visit.origin, failed.wait_s, time.monotonic())
            raise
        finally:
            self.end_turn(visit)

    async def extract(self, visit: Visit, page: Page, on_outline: Callable[[Outline], None]) -> Extracted:
        """Outline and text of the page; see :meth:`.ExtractionPool.extract`."""
        since_s = time.monotonic()
        try:
            return await self._services.pool.extract(page, on_outline, self._focus)
        finally:
            visit.note("extract", since_s)

    def _require_open(self, visit: Visit) -> None:
        if (shut_s := self._services.politeness.shut_s(visit.origin, time.monotonic())) > 0:
            raise PageSkippedError(Skip.OVERLOADED, f"its host asked to be left alone for another {shut_s:.0f} s")

    async def _require_allowed(self, visit: Visit) -> None:
        since_s = time.monotonic()
        rules = await self._services.rules(visit.origin)
        self._services.politeness.learn(visit.origin, rules.crawl_delay_s, time.monotonic())
        self._services.wake_all()
        if visit.origin not in self._met:
            self._met.add(visit.origin)
            visit.note("robots", since_s, rules.summary, source=f"{visit.origin}/robots.txt")
        url = visit.target.url
        if reason := await asyncio.to_thread(rules.refusal, url) if rules.is_long else rules.refusal(url):
            raise PageSkippedError(Skip.ROBOTS, reason)

    async def _download(self, visit: Visit) -> Page | Redirect:
        since_s = time.monotonic()
        terms = replace(self._terms, may_list=visit.target.may_list)
        page = await self._services.fetcher.get_page(visit.target.url, terms)
        if isinstance(page, Page) and page.came_from == "cache":
            self._services.politeness.spared(visit.origin, visit.started_s)
        else:
            self._services.politeness.answered(visit.origin, time.monotonic() - since_s)
        if isinstance(page, Page):
            num_bytes = len(page.body)
            visit.note("download", since_s, f"{num_bytes:,} bytes{_REMARKS[page.came_from]}", category=page.came_from)
            self._services.counters.downloaded(page.came_from, num_bytes, time.monotonic() - since_s)
        return page
