"""A web without sockets, on an event loop whose clock jumps to what comes next: thousands of crawls in seconds.

Network and extraction processes are stood in for; links are found, spelled and followed by the crawler's own code.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock
from urllib.parse import quote, urlsplit

from stream2llm_rag.retrievers.crawler import WebCrawler
from stream2llm_rag.retrievers.crawler.extract import decode, outline_of, visible_text
from stream2llm_rag.retrievers.crawler.fetch import ByteBudget, Terms
from stream2llm_rag.retrievers.crawler.pages import (
    NO_FOCUS,
    Extracted,
    Focus,
    Outline,
    Page,
    PageSkippedError,
    Redirect,
    Skip,
    TryAgainError,
)
from stream2llm_rag.retrievers.crawler.robots import RobotsRules
from stream2llm_rag.retrievers.crawler.robots_cache import RobotsCache
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, canonicalize, origin_of

T = TypeVar("T")
_CHUNK_BYTES = 64
_QUERIES = (  # ways to write a query: of pages of even numbers, which have none, and of the others
    ("", "?", "?utm_source=x", "?utm_medium=y&fbclid=z"),
    ("?a=1&b=/x", "?b=/x&a=1", "?b=%2fx&a=1", "?utm_source=x&&a=%31&b=/x", "?b=/x&a=1&fbclid=z"),
)


class _Jump(selectors.SelectSelector):
    """Waits for no one: the clock moves on by as long as it should have waited, and a little with each round of the loop."""

    now_s = 1_000.0
    _ROUND_S = 1e-6

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again: a task waits for what no other task does")
        self.now_s += max(self._ROUND_S, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Like asyncio.run, in virtual time, which is what ``time.monotonic`` tells everybody meanwhile."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        loop = runner.get_loop()
        with mock.patch("time.monotonic", loop.time):
            return runner.run(_await(main))


async def _await(main: Callable[[], Awaitable[T]]) -> T:
    return await main()


@dataclass
class Resource:
    """What lies behind any spelling of one address. ``fails`` says how often, and with which wish to be left alone."""

    url: str
    links: list[str] = field(default_factory=list)
    leads_to: str | None = None
    num_failures: int = 0
    retry_after_s: float = 0.0
    is_gone: bool = False
    never_answers: bool = False


@dataclass(frozen=True)
class Request:
    """One that was made: of whom, from when to when, and what the host had asked for by then."""

    origin: str
    url: str
    started_s: float
    ended_s: float


class Web:
    """A random web: hosts, pages on them that link to each other in many spellings, redirects, failures, delays.

    Stands in for the fetcher and for the extraction pool of a crawler, and records what it was asked.
    """

    def __init__(self, seed: int, *, num_hosts: int = 3, num_pages: int = 20, with_failures: bool = True) -> None:
        self._dice = random.Random(seed)
        urls = [f"http://{'abcdefgh'[i % num_hosts]}.example/{_name(i)}" for i in range(num_pages)]
        self.resources = {self._key(url): self._resource(url, urls, with_failures) for url in urls}
        self.entrance = urls[0]
        self.resources[self._key(self.entrance)] = Resource(self.entrance, links=self._links(urls, 6))
        self.crawl_delay_s = {origin_of(CanonicalUrl(url)): self._dice.choice([0.0, 0.0, 0.5, 2.0]) for url in urls}
        self.requests: list[Request] = []
        self.num_fetched: Counter[str] = Counter()
        self.asked_for_rest: dict[str, list[tuple[float, float]]] = {}  # by origin: from when, until when
        self.num_open = self.max_open = 0
        self.num_bytes = 0
        self.robots: list[Request] = []

    # What a Fetcher does.

    async def get_page(self, url: CanonicalUrl, terms: Terms) -> Page | Redirect:
        resource = self.resources[self._key(url)]
        started_s = time.monotonic()
        self._open(+1)
        try:
            await self._pass_time(30.0 if resource.never_answers else None)
            return await self._answer(resource, url, terms.budget)
        finally:
            self._open(-1)
            self.requests.append(Request(origin_of(url), url, started_s, time.monotonic()))

    async def get_robots(self, origin: str) -> RobotsRules:
        started_s = time.monotonic()
        self._open(+1)
        try:
            await self._pass_time()
            return RobotsRules("test", crawl_delay_s=self.crawl_delay_s[origin])
        finally:
            self._open(-1)
            self.robots.append(Request(origin, f"{origin}/robots.txt", started_s, time.monotonic()))

    # What an ExtractionPool does.

    async def extract(self, page: Page, on_outline: Callable[[Outline], None], focus: Focus = NO_FOCUS) -> Extracted:
        self._open(+1)
        try:
            await self._pass_time()
            text = decode(page)
            outline = outline_of(page, text, focus.question)
            on_outline(outline)
            await self._pass_time()
            return Extracted(outline, visible_text(text), None if focus.question is None else 0.5)
        finally:
            self._open(-1)

    async def aclose(self) -> None:
        await asyncio.sleep(0)

    def spelling(self, url: str) -> str:
        """Another way to write this address."""
        dice, parts = self._dice, urlsplit(url)
        scheme, host, path = dice.choice(["http", "HTTP"]), parts.netloc, parts.path
        host = dice.choice([host, host.upper(), f"{host}:80", f"{host}:", f"{host}."])
        path = dice.choice([path, quote(path), quote(path).replace("%C3", "%c3"), f"/x/..{path}", f"/.{path}"])
        query = dice.choice(_QUERIES[int(path.rpartition("-")[2]) % 2])
        return f"{scheme}://{host}{path}{query}{dice.choice(['', '#', '#part'])}"

    def _resource(self, url: str, urls: list[str], with_failures: bool) -> Resource:
        dice = self._dice
        resource = Resource(url, links=self._links(urls, dice.randrange(5)))
        match dice.randrange(12) if with_failures else 12:
            case 0:
                resource.leads_to = self.spelling(dice.choice(urls))
            case 1:
                resource.is_gone = True
            case 2:
                resource.num_failures = dice.choice([1, 2, 9])
                resource.retry_after_s = dice.choice([0.0, 3.0, 15.0, 3600.0])
            case 3:
                resource.never_answers = True
        return resource

    def _links(self, urls: list[str], number: int) -> list[str]:
        return [self.spelling(self._dice.choice(urls)) for _ in range(number)]

    async def _answer(self, resource: Resource, url: CanonicalUrl, budget: ByteBudget) -> Page | Redirect:
        if resource.num_failures > 0:
            resource.num_failures -= 1
            now_s, rest_s = time.monotonic(), resource.retry_after_s
            self.asked_for_rest.setdefault(origin_of(url), []).append((now_s, now_s + rest_s))
            raise TryAgainError(Skip.STATUS, "HTTP 503", rest_s)
        self.num_fetched[self._key(url)] += 1
        if resource.is_gone or resource.never_answers:
            raise PageSkippedError(Skip.STATUS, "HTTP 410")
        if resource.leads_to is not None:
            target = canonicalize(resource.leads_to)
            assert target is not None
            return Redirect(target)
        links = "".join(f'<a href="{link}">link</a>' for link in resource.links)
        body = f"<p>Text of {resource.url}.</p>{links}".encode()
        for start in range(0, len(body), _CHUNK_BYTES):
            await self._pass_time()
            self.num_bytes += len(body[start : start + _CHUNK_BYTES])
            budget.take(len(body[start : start + _CHUNK_BYTES]))
        return Page(url, "text/html; charset=utf-8", body)

    async def _pass_time(self, least_s: float | None = None) -> None:
        for _ in range(self._dice.randrange(3)):
            await asyncio.sleep(0)
        await asyncio.sleep(least_s or self._dice.choice([0.0, 0.0, 0.01, 0.1, 0.7]))

    def _open(self, change: int) -> None:
        self.num_open += change
        self.max_open = max(self.max_open, self.num_open)

    def _key(self, url: str) -> str:
        """The one identity of all spellings, found in another way than by the crawler's own."""
        parts = urlsplit(url)
        return f"{(parts.hostname or '').rstrip('.')} {parts.path.rpartition('-')[2]}"


def _name(number: int) -> str:
    return f"über~the sea/page-{number}"


class VirtualCrawler(WebCrawler):
    """A crawler of a Web."""

    def __init__(self, web: Web, seeds: list[str] | None = None, **settings: Any) -> None:
        super().__init__(seeds or [web.entrance], scope="any", **settings)
        self.web = web

    async def __aenter__(self) -> VirtualCrawler:
        self._loop = asyncio.get_running_loop()
        self._fetcher = self._pool = self.web
        self._rules = RobotsCache(self.web.get_robots, clock=time.monotonic).rules
        return self

    def is_at_rest(self) -> bool:
        """Whether nothing is open, and no host is thought to be busy."""
        hosts = self._politeness._origins.values()
        return self.web.num_open == 0 and not self._streams and all(host.num_active == 0 for host in hosts)
