"""The crawler: settings, lifecycle, and the streams that it gives out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Self

from stream2llm_rag.errors import LifecycleError
from stream2llm_rag.retrievers.base import require_question
from stream2llm_rag.retrievers.crawler import metrics
from stream2llm_rag.retrievers.crawler.addresses import PrivateHosts
from stream2llm_rag.retrievers.crawler.cookies import GivenCookies
from stream2llm_rag.retrievers.crawler.crawl import Crawl
from stream2llm_rag.retrievers.crawler.fetch import Fetcher
from stream2llm_rag.retrievers.crawler.page_cache import PageCache
from stream2llm_rag.retrievers.crawler.politeness import Politeness
from stream2llm_rag.retrievers.crawler.pool import DEFAULT_EXTRACTOR
from stream2llm_rag.retrievers.crawler.proxy import Proxy
from stream2llm_rag.retrievers.crawler.robots import RobotsRules
from stream2llm_rag.retrievers.crawler.robots_cache import RobotsCache
from stream2llm_rag.retrievers.crawler.search import SearchProvider
from stream2llm_rag.retrievers.crawler.settings import (
    DEFAULT_USER_AGENT,
    Extraction,
    Limits,
    Manners,
    Network,
    Order,
    Taste,
    parse_seeds,
)
from stream2llm_rag.retrievers.crawler.stream import CrawlStream
from stream2llm_rag.retrievers.crawler.urls import Scope, ScopeKind
from stream2llm_rag.retrievers.crawler.visit import Services
from stream2llm_rag.shielding import run_shielded


class WebCrawler:
    """Crawls from ``seeds``, the most promising links first, and yields each page as soon as its text is there.

    A StreamingRetriever.

    ::

        async with WebCrawler(["https://docs.python.org/3/library/asyncio.html"], scope="prefix") as crawler:
            async for delta in crawler.stream("How do I cancel a task?"):
                ...

    Every stream is a crawl of its own, within its own ``max_pages`` documents (and ``max_pages_per_host``), ``max_depth`` links
    from a seed, ``max_total_bytes``, ``timeout_s`` seconds and ``concurrency`` pages in flight. All share one HTTP client, the
    extraction processes, and the manners towards each host: ``per_host_concurrency`` requests at once, starts ``delay_s``
    seconds apart (or as robots.txt asks, up to 10 seconds).

    A seed is a page, a sitemap (also an index of them) or a feed (RSS, Atom); further ones come from ``search``, asked with the
    question. Links are scored against the question by BM25, over their texts and addresses, and with the promise of the page
    they stand on; one page in four comes from the host served longest ago. ``order="breadth"`` follows them by depth instead.
    With ``order="relevance"`` each document has a ``score`` from 0 to 1, pages below ``min_relevance`` are left out, and of a
    page with more than about ``max_page_tokens`` tokens only the best passages are kept (``metadata["is_cut"]``). A page whose
    text came before is left out, and so is one that has more than a share of ``max_similarity`` of its wording in common with
    another (1 for no such limit).

    ``scope`` says which links and redirects are followed: to the site of a seed (``"host"``), below the last ``/`` of a seed's
    path (``"prefix"``), or ``"any"``; of these, the URLs that one of the regular expressions ``allow`` finds, if there are any,
    and none that one of ``deny`` finds. A page is refused beyond ``max_page_bytes`` (decompressed), ``page_timeout_s`` for its
    answer, or ``extract_timeout_s`` for its text.

    Private, loopback and other internal addresses are refused at each connection, unless ``allow_private_hosts`` names the host
    (``"localhost"``) or the host and port (``"127.0.0.1:8080"``) as the URL does. ``proxy`` is a URL that all requests go
    through; a private one must be named in ``allow_private_proxies``, and names of pages are then resolved there, unseen.
    ``cookies`` maps a site's URL to its cookies, which are sent to its host alone; each stream keeps what sites add to them.
    With ``cache``, a folder or a :class:`PageCache`, pages are kept on disk as HTTP allows, and asked for again only to confirm
    them. ``extractor`` is the ``module:function`` that turns ``(html, url)`` into text, imported by the ``num_extractors``
    extraction processes; or ``"fast"``, for quick rules that leave more of menus and margins in.

    Raises InvalidInputError for settings that cannot be used.
    """

    def __init__(
        self,
        seeds: Sequence[str] = (),
        *,
        search: SearchProvider | None = None,
        order: Order = "relevance",
        min_relevance: float = 0.0,
        max_page_tokens: int | None = None,
        max_similarity: float = 0.9,
        scope: ScopeKind = "host",
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        max_pages: int = 12,
        max_pages_per_host: int | None = None,
        max_depth: int = 3,
        max_page_bytes: int = 2_000_000,
        max_total_bytes: int = 50_000_000,
        timeout_s: float = 60.0,
        page_timeout_s: float = 15.0,
        extract_timeout_s: float = 10.0,
        concurrency: int = 8,
        per_host_concurrency: int = 4,
        delay_s: float = 0.0,
        num_extractors: int = 2,
        user_agent: str = DEFAULT_USER_AGENT,
        obey_robots: bool = True,
        allow_private_hosts: Collection[str] = (),
        cache: str | Path | PageCache | None = None,
        cookies: GivenCookies | None = None,
        proxy: str | None = None,
        allow_private_proxies: Collection[str] = (),
        extractor: str = DEFAULT_EXTRACTOR,
    ) -> None:
        self._seeds = parse_seeds(seeds, has_search=search is not None)
        self._scope = Scope.parse(scope, self._seeds, allow, deny)
        self._search = search
        self._taste = Taste(order, min_relevance, max_page_tokens, max_similarity)
        self._limits = Limits(max_pages, max_depth, max_page_bytes, max_total_bytes, timeout_s, concurrency, max_pages_per_host)
        self._manners = Manners(per_host_concurrency, delay_s, user_agent, obey_robots)
        private_hosts = PrivateHosts.parse(allow_private_hosts)
        self._network = Network(page_timeout_s, private_hosts, Proxy.parse(proxy, allow_private_proxies), cookies)
        self._cache = cache if cache is None or isinstance(cache, PageCache) else PageCache(cache)
        self._politeness = Politeness(max_active=per_host_concurrency, delay_s=delay_s)
        self._pool = Extraction(num_extractors, extract_timeout_s, extractor).pool()
        self._counters = metrics.CrawlCounters()
        self._fetcher: Fetcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rules: Callable[[str], Awaitable[RobotsRules]] = self._allow_all
        self._streams: list[CrawlStream] = []
        self._is_closed = False

    async def __aenter__(self) -> Self:
        if self._fetcher is not None or self._is_closed:
            raise LifecycleError("A WebCrawler is opened once; this one was opened before. Make a new one.")
        self._loop = asyncio.get_running_loop()
        if self._cache is not None:
            await self._cache.open()
        self._fetcher = self._network.fetcher(self._manners.user_agent, self._cache)
        if self._manners.obey_robots:
            self._rules = RobotsCache(self._fetcher.get_robots).rules
        self._pool.open()
        metrics.collector.show(self._counters, lambda: sum(stream.num_in_flight for stream in tuple(self._streams)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End every stream, request and process. Streams that had not ended raise CrawlError for their readers.

        Goes through to the end: cancelled meanwhile, it raises CancelledError only when nothing is open any more.
        """
        if self._fetcher is None or self._is_closed:
            return
        self._is_closed = True
        metrics.collector.keep(self._counters)
        await run_shielded(self._close(self._fetcher))

    async def _close(self, fetcher: Fetcher) -> None:
        async with AsyncExitStack() as stack:  # each of them, even where the event loop itself ends meanwhile
            stack.push_async_callback(fetcher.aclose)
            stack.push_async_callback(self._pool.aclose)
            if self._cache is not None:
                stack.push_async_callback(self._cache.aclose)
            await asyncio.gather(*(stream.stop() for stream in self._streams))

    def stream(self, query: str) -> CrawlStream:
        """Start a crawl for this question. LifecycleError unless the crawler is open."""
        require_question(query)
        if self._is_closed:
            raise LifecycleError("This WebCrawler is closed. Read its streams inside its `async with`.")
        if self._fetcher is None:
            raise LifecycleError("This WebCrawler is not open. Write: async with WebCrawler(...) as crawler: ...")
        if asyncio.get_running_loop() is not self._loop:  # its sockets belong to the loop that opened it
            raise LifecycleError(
                "This WebCrawler was opened on another event loop. Read it there, or open it with BackgroundEngine.host(), "
                "for callers on any."
            )
        services = Services(self._fetcher, self._politeness, self._pool, self._rules, self._wake_all, self._counters)
        search = None if self._search is None else partial(self._search.search, query)
        jar = self._network.cookie_jar()
        crawl = Crawl(self._seeds, self._scope, self._limits, services, self._taste, query, search, jar)
        stream = CrawlStream(crawl, on_end=self._streams.remove)
        self._streams.append(stream)
        return stream

    def _wake_all(self) -> None:
        """Let every stream look for a page to start, so that none keeps a busy host to itself: first who did so longest ago."""
        for stream in sorted(self._streams, key=attrgetter("last_start_s")):
            stream.wake()

    async def _allow_all(self, origin: str) -> RobotsRules:
        return RobotsRules(self._manners.user_agent)
