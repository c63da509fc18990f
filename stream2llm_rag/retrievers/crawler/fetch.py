"""One HTTP request at a time, held to its limits: address, redirects, content type, bytes, time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from stream2llm_rag.retrievers.crawler.connections import AddressRefusedError, Connections
from stream2llm_rag.retrievers.crawler.cookies import CookieJar
from stream2llm_rag.retrievers.crawler.page_cache import PageCache, Stored
from stream2llm_rag.retrievers.crawler.pages import (
    Page,
    PageSkippedError,
    Redirect,
    Skip,
    Source,
    TryAgainError,
    is_readable,
    media_type_of,
)
from stream2llm_rag.retrievers.crawler.retries import TRANSIENT, parse_retry_after
from stream2llm_rag.retrievers.crawler.robots import (
    LONG_ROBOTS_BYTES,
    MAX_ROBOTS_BYTES,
    MAX_ROBOTS_REDIRECTS,
    RobotsRules,
    rules_from_answer,
)
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, canonicalize

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})  # what aiohttp undoes; others it passes on
ACCEPT = "text/html,application/xhtml+xml,text/markdown;q=0.9,text/plain;q=0.8,application/pdf;q=0.7"


class ByteBudget:
    """How many bytes a crawl may still read, in all."""

    def __init__(self, num_bytes: int) -> None:
        self.num_left = num_bytes

    def take(self, num_bytes: int) -> None:
        """Count bytes that came; PageSkippedError once they are more than was left."""
        self.num_left -= num_bytes
        if self.num_left < 0:
            raise PageSkippedError(Skip.SIZE, "the crawl's byte limit is reached")


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a page is fetched: its limits, the cookies of its crawl, and whether it ``may_list`` other pages."""

    max_bytes: int
    budget: ByteBudget
    cookies: CookieJar | None = None
    may_list: bool = False


class Fetcher:
    """The HTTP client of a crawler, shared by its streams.

    Pages come through ``cache`` where there is one, apart from those of crawlers that may reach other hosts (``cache_scope``).
    """

    def __init__(
        self,
        connections: Connections,
        *,
        user_agent: str,
        timeout_s: float,
        cache: PageCache | None = None,
        cache_scope: str = "",
    ) -> None:
        self._connections = connections
        self._user_agent = user_agent
        self._timeout_s = timeout_s
        self._cache = cache
        self._cache_scope = cache_scope

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connections.aclose()

    async def get_page(self, url: CanonicalUrl, terms: Terms) -> Page | Redirect:
        """Fetch a page. A redirect is not followed. PageSkippedError says why not."""
        cookie = None if terms.cookies is None else terms.cookies.header_for(url)
        headers = {} if cookie is None else {"Cookie": cookie}
        if self._cache is None:
            async with self._get(url, headers) as response:
                return await _page(response, url, terms)
        return await self._get_through(self._cache, url, headers, terms)

    async def _get_through(
        self, cache: PageCache, url: CanonicalUrl, headers: Mapping[str, str], terms: Terms
    ) -> Page | Redirect:
        session = self._connections.session_for(url)  # first, as it says whom we may not even ask
        scope = f"{self._cache_scope} {'any' if self._connections.may_be_private(url) else 'public'}"
        sent = {name.lower(): value for name, value in session.headers.items()}
        if "Cookie" in headers:  # it decides what is found, but is not written down
            sent["cookie"] = hashlib.sha256(headers["Cookie"].encode()).hexdigest()
        lookup = await cache.look_up(url, sent, scope=scope, max_bytes=terms.max_bytes)
        if lookup.stored is not None and lookup.is_fresh:
            return _stored_page(lookup.stored, url, terms, "cache")
        page = None
        asked = {name: value for name, value in lookup.headers.items() if name.lower() != "cookie"}
        async with self._get(url, {**asked, **headers}) as response:
            is_confirmed = response.status == 304 and lookup.stored is not None
            if not is_confirmed:
                page = await _page(response, url, terms)
        if is_confirmed and (stored := await cache.confirm(lookup, response.headers)) is not None:
            return _stored_page(stored, url, terms, "confirmed")
        if page is None:
            raise TryAgainError(Skip.ANSWER, "HTTP 304 for another page than the one that is stored")
        if response.status == 200 and isinstance(page, Page):
            await cache.store(lookup, Stored(page.content_type, page.body), response.headers)
        return page

    async def get_robots(self, origin: str) -> RobotsRules:
        """Fetch and read an origin's robots.txt. Does not fail: what cannot be reached disallows all (RFC 9309)."""
        url = canonicalize(f"{origin}/robots.txt")
        assert url is not None  # an origin comes from a canonical URL
        try:
            for _ in range(MAX_ROBOTS_REDIRECTS + 1):
                async with self._get(url) as response:
                    if response.status not in _REDIRECTS:
                        body = await _read_start(response, MAX_ROBOTS_BYTES)
                        return await self._rules(response.status, body)
                    url = _redirect(response, url).location
        except PageSkippedError as skipped:
            return RobotsRules(self._user_agent, unreachable=str(skipped))
        return rules_from_answer(302, b"", self._user_agent)

    async def _rules(self, status: int, body: bytes) -> RobotsRules:
        if len(body) < LONG_ROBOTS_BYTES:
            return rules_from_answer(status, body, self._user_agent)
        return await asyncio.to_thread(rules_from_answer, status, body, self._user_agent)

    @asynccontextmanager
    async def _get(self, url: CanonicalUrl, headers: Mapping[str, str] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a GET, with everything that can go wrong on the way turned into PageSkippedError."""
        session, proxy = self._connections.session_for(url), self._connections.proxy_url
        target = URL(url, encoded=True)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                session.get(target, headers=headers, proxy=proxy, allow_redirects=False) as response,
            ):
                yield response
        except TimeoutError as error:
            raise PageSkippedError(Skip.TIMEOUT, f"no complete answer within {self._timeout_s:g} s") from error
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
            raise TryAgainError(Skip.CONNECTION, "the connection broke off before the answer") from error
        except aiohttp.ClientHttpProxyError as error:  # whose text has the proxy's URL, with its password
            raise PageSkippedError(Skip.CONNECTION, f"the proxy answered HTTP {error.status}") from None
        except aiohttp.ClientConnectorError as error:
            why = Skip.ADDRESS if isinstance(error.os_error, AddressRefusedError) else Skip.CONNECTION
            raise PageSkippedError(why, f"no connection: {error.os_error}") from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: a host name or a header that aiohttp will not take
            raise PageSkippedError(Skip.ANSWER, f"no valid answer: {error or type(error).__name__}") from error


async def _page(response: aiohttp.ClientResponse, url: CanonicalUrl, terms: Terms) -> Page | Redirect:
    """What an answer brings. PageSkippedError where that is no page, before its body is read as far as the header tells."""
    if terms.cookies is not None:
        terms.cookies.learn(response)
    if response.status in _REDIRECTS:
        return _redirect(response, url)
    if not 200 <= response.status < 300:
        raise _refused(response)
    content_type = response.headers.get("Content-Type", "")
    _require_readable(content_type, terms)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise PageSkippedError(Skip.CONTENT_TYPE, f"its content encoding is {encoding!r}, which cannot be read")
    return Page(url, content_type, await _read_body(response, terms.max_bytes, terms.budget))


def _stored_page(stored: Stored, url: CanonicalUrl, terms: Terms, came_from: Source) -> Page:
    _require_readable(stored.content_type, terms)
    terms.budget.take(len(stored.body))
    return Page(url, stored.content_type, stored.body, came_from)


def _require_readable(content_type: str, terms: Terms) -> None:
    if not is_readable(media_type := media_type_of(content_type), may_list=terms.may_list):
        raise PageSkippedError(Skip.CONTENT_TYPE, f"its content type is {media_type or 'not given'}, which is not text")


def _refused(response: aiohttp.ClientResponse) -> PageSkippedError:
    reason = f"HTTP {response.status}"
    if response.status not in TRANSIENT:
        return PageSkippedError(Skip.STATUS, reason)
    return TryAgainError(Skip.STATUS, reason, parse_retry_after(response.headers.get("Retry-After"), time.time()))


def _redirect(response: aiohttp.ClientResponse, url: CanonicalUrl) -> Redirect:
    location = response.headers.get("Location", "")
    target = canonicalize(location, base=url) if location else None
    if target is None:
        raise PageSkippedError(Skip.REDIRECT, f"it redirects to {location!r}, which cannot be fetched")
    return Redirect(target)


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int, budget: ByteBudget) -> bytes:
    """The whole body, decompressed. Limits hold on what comes out, so that a small bomb stays small."""
    too_large = f"it is larger than {max_bytes} bytes"
    if (response.content_length or 0) > max_bytes:
        raise PageSkippedError(Skip.SIZE, too_large)
    body = bytearray()
    async for chunk in response.content.iter_any():
        budget.take(len(chunk))
        body += chunk
        if len(body) > max_bytes:
            raise PageSkippedError(Skip.SIZE, too_large)
    return bytes(body)


async def _read_start(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])
