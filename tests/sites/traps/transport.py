"""Answers that are slow, large, elsewhere, refused or broken."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

from aiohttp import web

from tests.sites.traps.answers import (
    BROKEN_OFF,
    COMES,
    HEAD,
    NO_ANSWER,
    TOO_LARGE,
    TOO_LATE,
    Answer,
    body_of,
    html_of,
    page,
    raw,
    stream,
)


def slow_ones() -> Iterator[tuple[str, str, Answer]]:
    async def silent(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return page(request)

    yield "slow", COMES, slow
    yield "silent", TOO_LATE, silent
    yield "drips-body", TOO_LATE, stream(b"x", 0.2)
    yield "drips-headers", TOO_LATE, raw(HEAD, b"X-More: 1\r\n", pause_s=0.2)
    yield "continues-for-ever", TOO_LATE, raw(b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.01)


def large_ones() -> Iterator[tuple[str, str, Answer]]:
    bomb = gzip.compress(bytes(50_000_000))
    fields = b"".join(b"X-%d: 1\r\n" % i for i in range(5_000))
    yield "endless", TOO_LARGE, stream(b"<p>more</p>" * 1_000, 0.0)
    yield "says-it-is-large", TOO_LARGE, raw(HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x", pause_s=0.2)
    yield "gzip-bomb", TOO_LARGE, body_of(lambda _: bomb, Content_Encoding="gzip")
    yield "deflate-bomb", TOO_LARGE, body_of(lambda _: zlib.compress(bytes(50_000_000)), Content_Encoding="deflate")
    yield (
        "bomb-in-a-bomb",
        "its content encoding is 'gzip, gzip'",
        body_of(lambda _: gzip.compress(bomb), Content_Encoding="gzip, gzip"),
    )
    yield "huge-header", NO_ANSWER, body_of(html_of, X_Huge="x" * 100_000)
    yield (
        "headers-without-end",
        f"{NO_ANSWER}|{TOO_LATE}",
        raw(HEAD, fields, pause_s=0.0),
    )


def redirects() -> Iterator[tuple[str, str, Answer]]:
    def to(location: Callable[[web.Request], str]) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": location(request)})

        return answer

    def chain(length: int) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            num_hops = len(request.path.split("/")) - 3
            return page(request) if num_hops == length else web.Response(status=301, headers={"Location": f"{request.path}/on"})

        return answer

    inside = "http://127.0.3.1:{}{}".format
    yield "redirects-to-itself", "which the crawl met before", to(lambda request: request.path)
    yield "redirects-in-a-loop", "which the crawl met before", to(lambda request: _other_of_two(request.path))
    yield "redirects-thrice", COMES, chain(3)
    yield "redirects-nine-times", "more than 5 redirects", chain(9)
    yield "redirects-for-ever", "more than 5 redirects", chain(1_000)
    yield "redirects-nowhere", "it redirects to '', which cannot be fetched", to(lambda _: "")
    yield "redirects-to-a-script", "which cannot be fetched", to(lambda _: "javascript:alert(1)")
    yield "redirects-inside", "is a loopback address", to(lambda request: inside(request.url.port, request.path))


def _other_of_two(path: str) -> str:
    return path.removesuffix("/b") if path.endswith("/b") else f"{path}/b"


def overload() -> Iterator[tuple[str, str, Answer]]:
    def failing(num_failures: float, status: int, **headers: str) -> Answer:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        num_asked: Counter[str] = Counter()

        async def answer(request: web.Request) -> web.StreamResponse:
            num_asked[request.path] += 1
            if num_asked[request.path] > num_failures:
                return page(request)
            return web.Response(status=status, headers=names)

        return answer

    yield "busy-once", COMES, failing(1, 429, Retry_After="1")
    yield "busy-always", "HTTP 429, at each of 3 tries", failing(1e9, 429, Retry_After="0")
    yield "busy-for-an-hour", "asks to wait 3600 s|asked to be left alone", failing(1e9, 429, Retry_After="3600")
    yield "busy-nonsense", COMES, failing(1, 503, Retry_After="when it suits me, \xff")
    yield "fails-twice", COMES, failing(2, 500)
    yield "fails-always", "HTTP 502, at each of 3 tries", failing(1e9, 502)
    yield "not-implemented", "HTTP 501", failing(1e9, 501)
    yield "gone", "HTTP 410", failing(1e9, 410)


def broken_answers() -> Iterator[tuple[str, str, Answer]]:
    async def reset(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return await asyncio.Future()

    async def reset_in_the_body(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html", "Content-Length": "100000"})
        await response.prepare(request)
        await response.write(b"<p>so far</p>")
        return await reset(request)

    yield "reset", BROKEN_OFF, reset
    yield "reset-in-the-body", NO_ANSWER, reset_in_the_body
    yield "closed-at-once", BROKEN_OFF, raw()
    yield "not-http", NO_ANSWER, raw(b"220 mail.example ESMTP\r\n")
    yield "bad-status", NO_ANSWER, raw(b"HTTP/1.1 99999 Wow\r\n\r\n")
    yield "bad-chunks", NO_ANSWER, raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\nx")
    yield "huge-chunk", f"{NO_ANSWER}|{TOO_LARGE}", raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx")
    yield "two-lengths", f"{NO_ANSWER}|{COMES}", raw(HEAD + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello")
    yield "short-body", NO_ANSWER, raw(HEAD + b"Content-Length: 50\r\n\r\nhello")
    yield "unheard-of-encoding", "its content encoding is 'x-own'", body_of(html_of, Content_Encoding="x-own")
    yield "not-gzip", NO_ANSWER, raw(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello")
