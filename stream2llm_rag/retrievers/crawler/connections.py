"""The sockets of a crawler: whom they may lead to, directly or through a proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from stream2llm_rag.retrievers.crawler.addresses import PrivateHosts, refusal, written_refusal
from stream2llm_rag.retrievers.crawler.pages import PageSkippedError, Skip
from stream2llm_rag.retrievers.crawler.proxy import Proxy
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, host_and_port

_MAX_LOOKUPS = 32  # names that are looked up at once; further ones wait, within the time of their page


class AddressRefusedError(OSError):
    """A connection would have led where this crawl may not go."""


class Connections:
    """HTTP sessions by whom they may reach. They hold no cookies, and take no proxy from the environment.

    Two of them, because a socket factory sees the address but not the host that it is for. The guarded one judges every
    connection, so that a redirect, an address in a URL and a name that changes its mind (rebinding) all meet it.

    Behind a ``proxy`` the connections lead to it alone, and names are resolved there, out of our sight: then a host is judged
    by how it is written (:func:`.written_refusal`), and the proxy must see to the rest.
    """

    def __init__(self, *, headers: Mapping[str, str], private_hosts: PrivateHosts, proxy: Proxy | None = None) -> None:
        self._private_hosts = private_hosts
        self._proxy = proxy
        allowance = "allow_private_hosts" if proxy is None else "allow_private_proxies"
        self._resolver = _Resolver()
        self._guarded = _session(headers, _GuardedResolver(self._resolver, allowance), partial(_guarded_socket, allowance))
        self._unguarded = _session(headers, self._resolver, None)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._guarded.close()
        await self._unguarded.close()
        await self._resolver.close()

    def may_be_private(self, url: CanonicalUrl) -> bool:
        """Whether this host may be reached wherever its name leads."""
        return self._private_hosts.cover(*host_and_port(url))

    def session_for(self, url: CanonicalUrl) -> aiohttp.ClientSession:
        """The session to ask for ``url``. PageSkippedError where a proxy would be asked for what is private."""
        if self._proxy is None:
            return self._unguarded if self.may_be_private(url) else self._guarded
        if not self.may_be_private(url) and (reason := written_refusal(host_and_port(url)[0])):
            raise PageSkippedError(Skip.ADDRESS, f"{reason}, and allow_private_hosts does not name this host")
        return self._unguarded if self._proxy.may_be_private else self._guarded

    @property
    def proxy_url(self) -> str | None:
        """The proxy that requests go through, for aiohttp."""
        return None if self._proxy is None else self._proxy.url


class _Lookups:
    """What aiohttp's resolver asks of an event loop, in threads of its own.

    Nothing ends a lookup, not even its page: where the servers of a name are silent, its thread is taken for half a minute. Of
    the loop's own threads, which are for everybody, a few links to such names would take all.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_LOOKUPS, "crawler-names")

    async def getaddrinfo(self, host: str, port: int, **settings: int) -> Any:
        """``socket.getaddrinfo``."""
        look_up = partial(socket.getaddrinfo, host, port, **settings)
        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)

    async def getnameinfo(self, address: tuple[str, int], flags: int) -> tuple[str, str]:
        """``socket.getnameinfo``."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, socket.getnameinfo, address, flags)

    def close(self) -> None:
        """Begin no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Resolver(AbstractResolver):
    """aiohttp's own, but a name that has no address is an error of the connection: aiohttp breaks on an empty answer."""

    def __init__(self) -> None:
        self._lookups = _Lookups()
        self._resolver = aiohttp.ThreadedResolver(cast("asyncio.AbstractEventLoop", self._lookups))

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of ``host``. OSError where there is none."""
        if found := await self._resolver.resolve(host, port, family):
            return found
        raise OSError(None, "the name has no address")

    async def close(self) -> None:
        """Let go of the threads."""
        self._lookups.close()


class _GuardedResolver(AbstractResolver):
    """Leaves out the addresses that are refused: by the time that a socket is made, many refusals are one vague error.

    It guards nothing by itself, as addresses in URLs pass it by.
    """

    def __init__(self, resolver: _Resolver, allowance: str) -> None:
        self._resolver = resolver
        self._allowance = allowance

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of ``host`` that may be reached. AddressRefusedError where there are none but others."""
        found = await self._resolver.resolve(host, port, family)
        if allowed := [each for each in found if refusal(each["host"]) is None]:
            return allowed
        raise _refused(str(refusal(found[0]["host"])), self._allowance)

    async def close(self) -> None:
        """Nothing: the one underneath is shared."""


def _refused(reason: str, allowance: str) -> AddressRefusedError:
    return AddressRefusedError(f"{reason}, and {allowance} does not name this host")


def _session(
    headers: Mapping[str, str], resolver: AbstractResolver, socket_factory: aiohttp.SocketFactoryType | None
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # No limit of its own: waiting for a connection would count as time of the page. Politeness limits requests.
        connector=aiohttp.TCPConnector(limit=0, socket_factory=socket_factory, resolver=resolver),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # the fetcher sets the one that counts
        trust_env=False,
    )


def _guarded_socket(allowance: str, addr_info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, address = addr_info
    reason = refusal(str(address[0]))
    if reason is not None:
        raise _refused(reason, allowance)
    return socket.socket(family, kind, protocol)
