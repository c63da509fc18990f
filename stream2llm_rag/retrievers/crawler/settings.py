"""What a crawler is told, in groups that belong together. Each says at once what cannot be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

from stream2llm_rag import __version__
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler.addresses import PrivateHosts
from stream2llm_rag.retrievers.crawler.connections import Connections
from stream2llm_rag.retrievers.crawler.cookies import CookieJar, GivenCookies, fingerprint, require_cookies
from stream2llm_rag.retrievers.crawler.fetch import ACCEPT, Fetcher
from stream2llm_rag.retrievers.crawler.page_cache import PageCache
from stream2llm_rag.retrievers.crawler.pages import NO_FOCUS, Focus
from stream2llm_rag.retrievers.crawler.pool import ExtractionPool
from stream2llm_rag.retrievers.crawler.proxy import Proxy
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, parse_seed

DEFAULT_USER_AGENT = f"stream2llm-rag/{__version__}"
FAST_EXTRACTOR = "stream2llm_rag.retrievers.crawler.extract:resiliparse_text"

Order: TypeAlias = Literal["relevance", "breadth"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one crawl may take. Times in seconds, bytes decompressed."""

    max_pages: int
    max_depth: int
    max_page_bytes: int
    max_total_bytes: int
    timeout_s: float
    concurrency: int
    max_pages_per_host: int | None = None

    def __post_init__(self) -> None:
        _require_count(1, max_pages=self.max_pages, max_page_bytes=self.max_page_bytes, max_total_bytes=self.max_total_bytes)
        _require_count(1, concurrency=self.concurrency)
        if self.max_pages_per_host is not None:
            _require_count(1, max_pages_per_host=self.max_pages_per_host)
        _require_count(0, max_depth=self.max_depth)
        _require_time(timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class Taste:
    """Which pages come first, which become documents, and how much of each."""

    order: Order
    min_relevance: float
    max_page_tokens: int | None
    max_similarity: float

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise InvalidInputError(f"order is 'relevance' or 'breadth', but {self.order!r} came.")
        _require_share(min_relevance=self.min_relevance, max_similarity=self.max_similarity)
        if self.max_page_tokens is not None:
            _require_count(1, max_page_tokens=self.max_page_tokens)
        if self.order == "breadth" and (self.min_relevance or self.max_page_tokens is not None):
            raise InvalidInputError("min_relevance and max_page_tokens need order='relevance': only then are pages scored.")

    def focus(self, question: str) -> Focus:
        """What a crawl for this question looks for."""
        return Focus(question, self.max_page_tokens) if self.order == "relevance" else NO_FOCUS


@dataclass(frozen=True, slots=True)
class Manners:
    """How a crawler behaves towards each host, and what it calls itself."""

    per_host_concurrency: int
    delay_s: float
    user_agent: str
    obey_robots: bool

    def __post_init__(self) -> None:
        _require_count(1, per_host_concurrency=self.per_host_concurrency)
        if not _is_number(self.delay_s) or not 0 <= self.delay_s < math.inf:
            raise InvalidInputError(f"delay_s is a number of seconds from 0 on, but {self.delay_s!r} came.")
        if not isinstance(self.user_agent, str) or not self.user_agent.strip() or not self.user_agent.isprintable():
            raise InvalidInputError(f"user_agent is one line of text that names your crawler, but {self.user_agent!r} came.")


@dataclass(frozen=True, slots=True)
class Network:
    """Whom a crawler may reach, and as whom."""

    page_timeout_s: float
    private_hosts: PrivateHosts
    proxy: Proxy | None = None
    cookies: GivenCookies | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require_time(page_timeout_s=self.page_timeout_s)
        require_cookies(self.cookies)

    def fetcher(self, user_agent: str, cache: PageCache | None) -> Fetcher:
        """A client of these settings, on the running event loop."""
        headers = {"User-Agent": user_agent, "Accept": ACCEPT}
        connections = Connections(headers=headers, private_hosts=self.private_hosts, proxy=self.proxy)
        scope = fingerprint(self.cookies, "" if self.proxy is None else self.proxy.url)
        return Fetcher(connections, user_agent=user_agent, timeout_s=self.page_timeout_s, cache=cache, cache_scope=scope)

    def cookie_jar(self) -> CookieJar | None:
        """The cookies of a new crawl, on the running event loop; None where it has none."""
        return CookieJar(self.cookies) if self.cookies else None


@dataclass(frozen=True, slots=True)
class Extraction:
    """How pages become text. ``extractor`` is ``module:function`` or ``fast``."""

    num_extractors: int
    timeout_s: float
    extractor: str

    def __post_init__(self) -> None:
        _require_count(1, num_extractors=self.num_extractors)
        _require_time(extract_timeout_s=self.timeout_s)
        if not isinstance(self.extractor, str) or not all(part and part.isprintable() for part in self.path.partition(":")):
            raise InvalidInputError(f"extractor is 'fast' or 'module:function', but {self.extractor!r} came.")

    @property
    def path(self) -> str:
        """The extractor as ``module:function``."""
        return FAST_EXTRACTOR if self.extractor == "fast" else self.extractor

    def pool(self) -> ExtractionPool:
        """The processes that do it, not started yet."""
        return ExtractionPool(num_workers=self.num_extractors, timeout_s=self.timeout_s, extractor=self.path)


def parse_seeds(seeds: Sequence[str], *, has_search: bool) -> tuple[CanonicalUrl, ...]:
    """The seeds as the caller wrote them, each once. InvalidInputError where there is nothing to start from."""
    if isinstance(seeds, str):
        raise InvalidInputError(f"seeds is a sequence of URLs, not one string. Write: [{seeds!r}]")
    if not seeds and not has_search:
        raise InvalidInputError("A crawl needs at least one seed or a search, but none came. Write: WebCrawler(['https://…'])")
    return tuple(dict.fromkeys(parse_seed(seed) for seed in seeds))


def _is_number(value: object) -> bool:
    return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)


def _require_count(least: int, **counts: Any) -> None:
    for name, count in counts.items():
        if not _is_number(count) or not hasattr(count, "__index__") or count < least:
            raise InvalidInputError(f"{name} is a whole number, at least {least}, but {count!r} came.")


def _require_share(**shares: Any) -> None:
    for name, share in shares.items():
        if not _is_number(share) or not 0 <= share <= 1:
            raise InvalidInputError(f"{name} lies between 0 and 1, but {share!r} came.")


def _require_time(**times_s: Any) -> None:
    for name, time_s in times_s.items():
        if not _is_number(time_s) or not 0 < time_s < math.inf:
            raise InvalidInputError(f"{name} is a time in seconds above 0, but {time_s!r} came.")
