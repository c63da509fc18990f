"""One crawl: which pages are in flight, and what becomes of each."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from stream2llm_rag.documents import Document, RetrievalEvent
from stream2llm_rag.retrievers.crawler.choice import Choice
from stream2llm_rag.retrievers.crawler.cookies import CookieJar
from stream2llm_rag.retrievers.crawler.fetch import ByteBudget, Terms
from stream2llm_rag.retrievers.crawler.frontier import Target
from stream2llm_rag.retrievers.crawler.pages import (
    Outline,
    Page,
    PageSkippedError,
    Redirect,
    Skip,
    TryAgainError,
)
from stream2llm_rag.retrievers.crawler.quota import HostQuota
from stream2llm_rag.retrievers.crawler.retries import MAX_RETRIES, MAX_WAIT_S
from stream2llm_rag.retrievers.crawler.search import SearchHit
from stream2llm_rag.retrievers.crawler.settings import Limits, Taste
from stream2llm_rag.retrievers.crawler.trail import Trail
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, Scope, canonicalize
from stream2llm_rag.retrievers.crawler.visit import Services, Visit, Visitor

_MAX_BUFFERED = 64
_SEARCH = "the search"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one page: a document, or None and the reason in ``event``."""

    document: Document | None
    event: RetrievalEvent


class Crawl:
    """Runs ahead of its reader by a bounded buffer.

    ``outcomes`` waits for the reader, who sets ``moved`` after taking one; ``arrived`` is set when there is one more. A page is
    only started when its outcome will find room, so handing it over never waits. ``last_start_s`` is when one was.
    """

    def __init__(
        self,
        seeds: Sequence[CanonicalUrl],
        scope: Scope,
        limits: Limits,
        services: Services,
        taste: Taste,
        question: str,
        search: Callable[[], Awaitable[Sequence[SearchHit]]] | None = None,
        cookies: CookieJar | None = None,
    ) -> None:
        self.outcomes: deque[Outcome] = deque()
        self.arrived = asyncio.Event()
        self.moved = asyncio.Event()
        self.last_start_s = -math.inf
        self._limits = limits
        self._search = search
        self._counters = services.counters
        self._budget = ByteBudget(limits.max_total_bytes)
        self._visitor = Visitor(services, Terms(limits.max_page_bytes, self._budget, cookies), taste.focus(question))
        self._trail = Trail(scope, max_depth=limits.max_depth, max_urls=max(10_000, 20 * limits.max_pages))
        self._choice = Choice(self._trail, min_relevance=taste.min_relevance, max_similarity=taste.max_similarity)
        self._quota = HostQuota(limits.max_pages_per_host)
        self._in_flight: set[Visit] = set()
        self._num_pages = 0
        self._is_over = False
        if search is not None:
            self.failed_seeds[_SEARCH] = "it did not answer within the limits of the crawl"
        self._trail.add_seeds(seeds)

    @property
    def failed_seeds(self) -> dict[str, str]:
        """Why each seed gave no page, as far as it gave none."""
        return self._trail.failed_seeds

    @property
    def num_in_flight(self) -> int:
        """Pages that are being fetched or extracted."""
        return len(self._in_flight)

    @property
    def num_remaining(self) -> int:
        """How many outcomes are still to be read: those that wait, and a guess at those to come, at most ``max_pages``."""
        num_expected = len(self.outcomes)
        if not self._is_over:
            num_expected += len(self._in_flight) + min(len(self._trail), self._num_pages_wanted())
        return min(num_expected, self._limits.max_pages)

    async def run(self) -> None:
        """Crawl until no page is left or a limit is met. Cancelled, it gives back all that it holds."""
        try:
            async with asyncio.timeout(self._limits.timeout_s), asyncio.TaskGroup() as pages:
                if self._search is not None:
                    pages.create_task(self._find_seeds(self._search))
                await self._start_pages(pages)
        except TimeoutError:
            out_of_time = PageSkippedError(Skip.TIMEOUT, f"the crawl's time limit of {self._limits.timeout_s:g} s came first")
            for visit in sorted(self._in_flight, key=lambda each: each.started_s):
                self._skip(visit, out_of_time)
        finally:
            self._is_over = True
            for visit in self._in_flight:
                self._visitor.end_turn(visit)

    async def _find_seeds(self, search: Callable[[], Awaitable[Sequence[SearchHit]]]) -> None:
        """Start from what the search finds too. Where it fails, the other seeds are still there."""
        started_s = time.monotonic()
        kind, why = "search", None
        try:
            urls = [url for hit in await search() if (url := canonicalize(hit.url)) is not None]
            self._trail.add_found(urls)
            detail = f"it found {len(urls) or 'no'} pages"
        except Exception as error:  # a provider is code of others
            kind, why, detail = "skip", Skip.SEARCH, f"it failed: {error}"
        self.failed_seeds[_SEARCH] = detail
        self._search = None
        self._hand_over(Outcome(None, RetrievalEvent(kind, _SEARCH, started_s, time.monotonic(), detail, category=why)))

    async def _start_pages(self, pages: asyncio.TaskGroup) -> None:
        while True:
            self.moved.clear()
            while self._has_room() and (target := self._trail.pop(self._wait_s)):
                visit = self._visitor.begin(target)
                self.last_start_s = visit.started_s
                self._quota.start(visit.origin)
                self._in_flight.add(visit)
                pages.create_task(self._visit(visit))
            if not self._in_flight and self._search is None and not (len(self._trail) and self._num_pages_wanted()):
                return
            wait_s = self._trail.next_ready_s(self._wait_s) if self._has_room() else math.inf
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                    await self.moved.wait()

    def _wait_s(self, origin: str) -> float:
        """Seconds until a page of ``origin`` may be started; infinite while its host has no slot, or enough on their way."""
        return self._visitor.wait_s(origin) if self._quota.has_room(origin) else math.inf

    def _has_room(self) -> bool:
        num_in_flight = len(self._in_flight)
        return (
            self._num_pages_wanted() > 0
            and num_in_flight < self._limits.concurrency
            and num_in_flight + len(self.outcomes) < _MAX_BUFFERED
        )

    def _num_pages_wanted(self) -> int:
        """How many more pages may be started: as many as can still be emitted, should all in flight succeed."""
        if self._budget.num_left <= 0:
            return 0
        return self._limits.max_pages - self._num_pages - len(self._in_flight)

    async def _visit(self, visit: Visit) -> None:
        try:
            page = await self._visitor.fetch(visit)
            if isinstance(page, Redirect):
                self._redirect(visit, page.location)
                return
            extracted = await self._visitor.extract(visit, page, partial(self._follow, visit.target, page))
            if page.is_list:
                self._end_list(visit, extracted.outline)
            else:
                self._emit(visit, self._choice.document(visit.target, page, extracted))
        except TryAgainError as failed:
            self._try_again(visit, failed)
        except PageSkippedError as skipped:
            self._skip(visit, skipped)

    def _follow(self, target: Target, page: Page, outline: Outline) -> None:
        (self._trail.follow_list if page.is_list else self._trail.follow_links)(target, outline)
        self.moved.set()

    def _try_again(self, visit: Visit, failed: TryAgainError) -> None:
        """Queue it once more, unless that was tried often enough, or would take too long. Its host has a pause until then."""
        if visit.target.num_retries >= MAX_RETRIES:
            self._skip(visit, PageSkippedError(failed.why, f"{failed}, at each of {MAX_RETRIES + 1} tries"))
        elif failed.wait_s > MAX_WAIT_S:
            self._skip(visit, PageSkippedError(Skip.OVERLOADED, f"{failed}, and it asks to wait {failed.wait_s:.0f} s"))
        else:
            self._trail.put_back(visit.target)
            self._end(visit, visit.event("retry", detail=f"{failed}, to be tried again in {failed.wait_s:.1f} s"))

    def _redirect(self, visit: Visit, location: CanonicalUrl) -> None:
        """Go on where the redirect leads. What was done so far becomes part of what is told of the page there."""
        visit.note("redirect", visit.started_s, f"to {location}")
        self._trail.follow_redirect(visit.target, location, visit.steps)
        self._leave(visit)
        self.moved.set()

    def _end_list(self, visit: Visit, outline: Outline) -> None:
        if not outline.links:
            raise PageSkippedError(Skip.EMPTY, "it is XML, but no sitemap or feed that lists a page")
        self._end(visit, visit.event("list", detail=f"it lists {len(outline.links)} pages"))

    def _emit(self, visit: Visit, document: Document) -> None:
        self._num_pages += 1
        self._end(visit, visit.event("fetch", source=document.source, title=document.title), document)

    def _skip(self, visit: Visit, skipped: PageSkippedError) -> None:
        if visit.target.seed is not None:
            self.failed_seeds[visit.target.seed] = str(skipped)
        self._end(visit, visit.event("skip", detail=str(skipped), category=skipped.why))

    def _end(self, visit: Visit, event: RetrievalEvent, document: Document | None = None) -> None:
        self._visitor.end_turn(visit)  # of one that was cancelled before its first step; others gave it back
        self._leave(visit, is_page=document is not None)
        self._hand_over(Outcome(document, event))

    def _leave(self, visit: Visit, *, is_page: bool = False) -> None:
        self._in_flight.remove(visit)
        if self._quota.end(visit.origin, is_page=is_page):
            self._trail.close(visit.origin)

    def _hand_over(self, outcome: Outcome) -> None:
        self._counters.ended(outcome.event)
        self.outcomes.append(outcome)
        self.arrived.set()
        self.moved.set()
