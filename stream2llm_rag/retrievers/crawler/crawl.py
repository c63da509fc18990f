"""One crawl: which pages are in flight, and what becomes of each."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

from stream2llm_rag.documents import Document, RetrievalEvent
from stream2llm_rag.retrievers.crawler.fetch import ByteBudget, Fetcher
from stream2llm_rag.retrievers.crawler.frontier import Frontier, Target
from stream2llm_rag.retrievers.crawler.pages import NO_FOCUS, Focus, Outline, Page, PageSkippedError, Redirect, TryAgainError
from stream2llm_rag.retrievers.crawler.politeness import Politeness
from stream2llm_rag.retrievers.crawler.pool import Extracted, ExtractionPool
from stream2llm_rag.retrievers.crawler.retries import MAX_RETRIES, MAX_WAIT_S, wait_before_retry_s
from stream2llm_rag.retrievers.crawler.robots import RobotsRules
from stream2llm_rag.retrievers.crawler.search import SearchHit
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, Scope, canonicalize, origin_of, site_of, strip_tracking

MAX_REDIRECTS = 5
_MAX_BUFFERED = 64
_SEARCH = "the search"
_INHERITED = 0.5  # what the promise of a page counts for its links, beside what it says of them (shark-search, Hersovici 1998)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one crawl may take. Times in seconds."""

    max_pages: int
    max_depth: int
    max_page_bytes: int
    max_total_bytes: int
    timeout_s: float
    concurrency: int
    min_relevance: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one page: a document, or None and the reason in ``event``."""

    document: Document | None
    event: RetrievalEvent


class Crawl:
    """Runs ahead of its reader by a bounded buffer.

    ``outcomes`` waits for the reader, who sets ``moved`` after taking one; ``arrived`` is set when there is one more. A page is
    only started when its outcome will find room, so handing it over never waits.
    """

    def __init__(
        self,
        seeds: Sequence[CanonicalUrl],
        scope: Scope,
        limits: Limits,
        services: Services,
        focus: Focus = NO_FOCUS,
        search: Callable[[], Awaitable[Sequence[SearchHit]]] | None = None,
    ) -> None:
        self.outcomes: deque[Outcome] = deque()
        self.arrived = asyncio.Event()
        self.moved = asyncio.Event()
        self.failed_seeds: dict[str, str] = {}
        self._scope = scope
        self._limits = limits
        self._services = services
        self._focus = focus
        self._search = search
        self._frontier = Frontier(max_urls=max(10_000, 20 * limits.max_pages))
        self._budget = ByteBudget(limits.max_total_bytes)
        self._in_flight: dict[Target, float] = {}  # with the time it was started
        self._turns: set[Target] = set()  # those that hold a slot of their host
        self._sources: dict[bytes, str] = {}  # by digest of the text
        self._num_pages = 0
        self._is_over = False
        if search is not None:
            self.failed_seeds[_SEARCH] = "it did not answer within the limits of the crawl"
        for seed in seeds:
            self._add_seed(seed)

    @property
    def num_remaining(self) -> int:
        """How many outcomes are still to be read: those that wait, and a guess at those to come, at most ``max_pages``."""
        num_expected = len(self.outcomes)
        if not self._is_over:
            num_expected += len(self._in_flight) + min(len(self._frontier), self._num_pages_wanted())
        return min(num_expected, self._limits.max_pages)

    async def run(self) -> None:
        """Crawl until no page is left or a limit is met. Cancelled, it gives back all that it holds."""
        try:
            async with asyncio.timeout(self._limits.timeout_s), asyncio.TaskGroup() as pages:
                if self._search is not None:
                    pages.create_task(self._find_seeds(self._search))
                await self._start_pages(pages)
        except TimeoutError:
            for target in list(self._in_flight):
                self._skip(target, f"the crawl's time limit of {self._limits.timeout_s:g} s came first")
        finally:
            self._is_over = True
            for target in list(self._turns):  # of pages that were cancelled before their first step
                self._end_turn(target)

    def _add_seed(self, seed: CanonicalUrl) -> None:
        self.failed_seeds.setdefault(seed, "it was not reached within the limits of the crawl")
        self._frontier.add(Target(seed, strip_tracking(seed), seed=seed, may_list=True))

    async def _find_seeds(self, search: Callable[[], Awaitable[Sequence[SearchHit]]]) -> None:
        """Start from what the search finds too. Where it fails, the other seeds are still there."""
        started_s = time.monotonic()
        try:
            urls = [url for hit in await search() if (url := canonicalize(hit.url)) is not None]
        except Exception as error:  # a provider is code of others
            self.failed_seeds[_SEARCH] = f"it failed: {error}"
            event = RetrievalEvent("skip", _SEARCH, started_s, time.monotonic(), detail=f"it failed: {error}")
        else:
            event = RetrievalEvent("search", _SEARCH, started_s, time.monotonic(), detail=f"it found {len(urls)} pages")
            self._scope = self._scope.including(urls)
            for url in urls:
                self._add_seed(url)
            self.failed_seeds[_SEARCH] = f"it found {len(urls) or 'no'} pages"
        self._search = None
        self._hand_over(Outcome(None, event))

    async def _start_pages(self, pages: asyncio.TaskGroup) -> None:
        while True:
            self.moved.clear()
            while self._has_room() and (target := self._frontier.pop(self._wait_s)):
                self._in_flight[target] = time.monotonic()
                self._services.politeness.start(origin_of(target.url), time.monotonic())
                self._turns.add(target)
                pages.create_task(self._visit(target))
            if not self._in_flight and self._search is None and not (self._frontier and self._num_pages_wanted()):
                return
            wait_s = self._frontier.next_ready_s(self._wait_s) if self._has_room() else math.inf
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                    await self.moved.wait()

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

    def _wait_s(self, origin: str) -> float:
        return self._services.politeness.wait_s(origin, time.monotonic())

    async def _visit(self, target: Target) -> None:
        try:
            page = await self._fetch(target)
            if isinstance(page, Redirect):
                self._redirect(target, page.location)
                return
            follow = self._follow_list if page.is_list else self._follow
            extracted = await self._services.pool.extract(page, lambda outline: follow(target, outline), self._focus)
            if page.is_list:
                self._end_list(target, extracted.outline)
            else:
                self._emit(target, page, extracted)
        except TryAgainError as failed:
            self._try_again(target, failed)
        except PageSkippedError as skipped:
            self._skip(target, str(skipped))

    async def _fetch(self, target: Target) -> Page | Redirect:
        origin = origin_of(target.url)
        politeness = self._services.politeness
        try:
            if (shut_s := politeness.shut_s(origin, time.monotonic())) > 0:
                raise PageSkippedError(f"its host asked to be left alone for another {shut_s:.0f} s")
            rules = await self._services.rules(origin)
            politeness.learn(origin, rules.crawl_delay_s, time.monotonic())
            self._services.wake_all()
            if reason := rules.refusal(target.url):
                raise PageSkippedError(reason)
            started_s = time.monotonic()
            page = await self._services.fetcher.get_page(
                target.url, max_bytes=self._limits.max_page_bytes, budget=self._budget, may_list=target.may_list
            )
            politeness.answered(origin, time.monotonic() - started_s)
            return page
        except TryAgainError as failed:
            failed.wait_s = wait_before_retry_s(target.num_retries, failed.wait_s, random.random())  # noqa: S311 - no secret
            politeness.overloaded(origin, failed.wait_s, time.monotonic())
            raise
        finally:
            self._end_turn(target)

    def _end_turn(self, target: Target) -> None:
        self._turns.remove(target)
        self._services.politeness.end(origin_of(target.url))
        self._services.wake_all()

    def _try_again(self, target: Target, failed: TryAgainError) -> None:
        """Queue it once more, unless that was tried often enough, or would take too long. Its host has a pause until then."""
        reason = str(failed)
        if target.num_retries >= MAX_RETRIES:
            self._skip(target, f"{reason}, at each of {MAX_RETRIES + 1} tries")
        elif failed.wait_s > MAX_WAIT_S:
            self._skip(target, f"{reason}, and it asks to wait {failed.wait_s:.0f} s")
        else:
            self._frontier.put_back(replace(target, num_retries=target.num_retries + 1))
            detail = f"{reason}, to be tried again in {failed.wait_s:.1f} s"
            event = RetrievalEvent("retry", target.url, self._in_flight.pop(target), time.monotonic(), detail=detail)
            self._hand_over(Outcome(None, event))

    def _redirect(self, target: Target, location: CanonicalUrl) -> None:
        """Queue where a redirect leads, so that it meets every check that a link meets."""
        if target.num_redirects >= MAX_REDIRECTS:
            raise PageSkippedError(f"more than {MAX_REDIRECTS} redirects")
        if reason := self._scope.refusal(location):
            raise PageSkippedError(f"it redirects to {location}, and {reason}")
        onward = replace(target, url=location, key=strip_tracking(location), num_redirects=target.num_redirects + 1)
        if not self._frontier.add(onward):
            raise PageSkippedError(f"it redirects to {location}, which the crawl met before")
        del self._in_flight[target]
        self.moved.set()

    def _follow(self, target: Target, outline: Outline) -> None:
        if target.depth < self._limits.max_depth:
            self._queue(outline, depth=target.depth + 1, inherited=target.score)

    def _follow_list(self, target: Target, outline: Outline) -> None:
        """The pages of a sitemap or feed stand in for it. A list in a list is read, but none in that one (sitemaps.org)."""
        self._queue(outline, depth=target.depth, inherited=target.score, may_list=target.seed is not None)

    def _queue(self, outline: Outline, *, depth: int, inherited: float, may_list: bool = False) -> None:
        for url, own in outline.links:
            if self._scope.refusal(url) is None:
                score = (own + _INHERITED * inherited) / (1 + _INHERITED)
                self._frontier.add(Target(url, url, depth, score=score, may_list=may_list))
        self.moved.set()

    def _end_list(self, target: Target, outline: Outline) -> None:
        if not outline.links:
            raise PageSkippedError("it is XML, but no sitemap or feed that lists a page")
        detail = f"it lists {len(outline.links)} pages"
        event = RetrievalEvent("list", target.url, self._in_flight.pop(target), time.monotonic(), detail=detail)
        self._hand_over(Outcome(None, event))

    def _emit(self, target: Target, page: Page, extracted: Extracted) -> None:
        outline, text = extracted.outline, extracted.text.strip()
        if not text:
            raise PageSkippedError("it has no text")
        if extracted.score is not None and extracted.score < self._limits.min_relevance:
            raise PageSkippedError(f"its relevance of {extracted.score:.2f} is below {self._limits.min_relevance:g}")
        source = self._source(page.url, outline)
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._sources:
            raise PageSkippedError(f"it has the same text as {self._sources[digest]}")
        if not self._frontier.settle(target.key, strip_tracking(source)):
            raise PageSkippedError(f"it is another address of {source}")
        self._sources[digest] = source
        metadata = {"content_type": page.media_type, "num_bytes": len(page.body), "depth": target.depth}
        if extracted.is_cut:
            metadata["is_cut"] = True
        self._num_pages += 1
        event = RetrievalEvent("fetch", source, self._in_flight.pop(target), time.monotonic(), title=outline.title)
        self._hand_over(Outcome(Document(text, source, outline.title, extracted.score, metadata), event))

    def _source(self, url: CanonicalUrl, outline: Outline) -> CanonicalUrl:
        """The address that a page claims for itself, where it may: on its own site and within the scope."""
        claimed = outline.canonical
        if claimed is not None and site_of(claimed) == site_of(url) and self._scope.refusal(claimed) is None:
            return claimed
        return url

    def _skip(self, target: Target, reason: str) -> None:
        if target.seed is not None:
            self.failed_seeds[target.seed] = reason
        event = RetrievalEvent("skip", target.url, self._in_flight.pop(target), time.monotonic(), detail=reason)
        self._hand_over(Outcome(None, event))

    def _hand_over(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.arrived.set()
        self.moved.set()
