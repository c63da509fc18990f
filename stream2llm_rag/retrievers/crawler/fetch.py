"""One HTTP request at a time, held to its limits: address, redirects, content type, bytes, time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from stream2llm_rag.retrievers.crawler.addresses import PrivateHosts, refusal
from stream2llm_rag.retrievers.crawler.pages import (
    Page,
    PageSkippedError,
    Redirect,
    Skip,
    TryAgainError,
    is_readable,
    media_type_of,
)
from stream2llm_rag.retrievers.crawler.retries import TRANSIENT, parse_retry_after
from stream2llm_rag.retrievers.crawler.robots import (
    MAX_ROBOTS_BYTES,
    MAX_ROBOTS_REDIRECTS,
    RobotsRules,
    rules_from_answer,
)
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, canonicalize, host_and_port

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ACCEPT = "text/html,application/xhtml+xml,text/markdown;q=0.9,text/plain;q=0.8,application/pdf;q=0.7"


class AddressRefusedError(OSError):
    """A connection would have led where this crawl may not go."""


class ByteBudget:
    """How many bytes a crawl may still read, in all."""

    def __init__(self, num_bytes: int) -> None:
        self.num_left = num_bytes

    def take(self, num_bytes: int) -> None:
        """Count bytes that came; PageSkippedError once they are more than was left."""
        self.num_left -= num_bytes
        if self.num_left < 0:
            raise PageSkippedError(Skip.SIZE, "the crawl's byte limit is reached")


class Fetcher:
    """The HTTP client of a crawler, shared by its streams. Holds no cookies; takes no proxy from the environment."""

    def __init__(self, *, user_agent: str, timeout_s: float, private_hosts: PrivateHosts) -> None:
        self._user_agent = user_agent
        self._timeout_s = timeout_s
        self._private_hosts = private_hosts
        # Two sessions, because a socket factory sees the address but not the host that it is for. The guarded one judges every
        # connection, so that a redirect, an address in a URL and a name that changes its mind (rebinding) all meet it.
        self._guarded = self._session(_guarded_socket)
        self._unguarded = self._session(None)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._guarded.close()
        await self._unguarded.close()

    async def get_page(
        self, url: CanonicalUrl, *, max_bytes: int, budget: ByteBudget, may_list: bool = False
    ) -> Page | Redirect:
        """Fetch a page, or a sitemap or feed where it ``may_list`` others. A redirect is not followed.

        PageSkippedError says why not.
        """
        async with self._get(url) as response:
            if response.status in _REDIRECTS:
                return _redirect(response, url)
            if not 200 <= response.status < 300:
                raise _refused(response)
            content_type = response.headers.get("Content-Type", "")
            if not is_readable(media_type := media_type_of(content_type), may_list=may_list):
                raise PageSkippedError(Skip.CONTENT_TYPE, f"its content type is {media_type or 'not given'}, which is not text")
            return Page(url, content_type, await _read_body(response, max_bytes, budget))

    async def get_robots(self, origin: str) -> RobotsRules:
        """Fetch and read an origin's robots.txt. Does not fail: what cannot be reached disallows all (RFC 9309)."""
        url = canonicalize(f"{origin}/robots.txt")
        assert url is not None  # an origin comes from a canonical URL
        try:
            for _ in range(MAX_ROBOTS_REDIRECTS + 1):
                async with self._get(url) as response:
                    if response.status not in _REDIRECTS:
                        body = await _read_start(response, MAX_ROBOTS_BYTES)
                        return rules_from_answer(response.status, body, self._user_agent)
                    url = _redirect(response, url).location
        except PageSkippedError as skipped:
            return RobotsRules(self._user_agent, unreachable=str(skipped))
        return rules_from_answer(302, b"", self._user_agent)

    def _session(self, socket_factory: aiohttp.SocketFactoryType | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # No limit of its own: waiting for a connection would count as time of the page. Politeness limits requests.
            connector=aiohttp.TCPConnector(limit=0, socket_factory=socket_factory),
            headers={"User-Agent": self._user_agent, "Accept": _ACCEPT},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # _get sets the one that counts
            trust_env=False,
        )

    @asynccontextmanager
    async def _get(self, url: CanonicalUrl) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a GET, with everything that can go wrong on the way turned into PageSkippedError."""
        session = self._unguarded if self._private_hosts.cover(*host_and_port(url)) else self._guarded
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                session.get(URL(url, encoded=True), allow_redirects=False) as response,
            ):
                yield response
        except TimeoutError as error:
            raise PageSkippedError(Skip.TIMEOUT, f"no complete answer within {self._timeout_s:g} s") from error
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
            raise TryAgainError(Skip.CONNECTION, "the connection broke off before the answer") from error
        except aiohttp.ClientConnectorError as error:
            why = Skip.ADDRESS if isinstance(error.os_error, AddressRefusedError) else Skip.CONNECTION
            raise PageSkippedError(why, f"no connection: {error.os_error}") from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: a host name or a header that aiohttp will not take
            raise PageSkippedError(Skip.ANSWER, f"no valid answer: {error or type(error).__name__}") from error


def _guarded_socket(addr_info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, address = addr_info
    reason = refusal(str(address[0]))
    if reason is not None:
        raise AddressRefusedError(f"{reason}, and allow_private_hosts does not name this host")
    return socket.socket(family, kind, protocol)


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
