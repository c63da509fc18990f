"""What a host says of itself: in robots.txt, and to caches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from aiohttp import web

from tests.sites.traps.answers import COMES, HEAD, TOO_LATE, Answer, body_of, html_of, noise, plain, raw, stream


def robots_files() -> Iterator[tuple[str, str, Answer, Answer]]:
    def of(body: bytes, content_type: str = "text/plain") -> Answer:
        return body_of(lambda _: body, content_type)

    async def fails(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async def silent(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    async def around(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/robots.txt"})

    unreadable = "robots.txt could not be read"
    slow_pattern = b"User-agent: *\nDisallow: /" + b"*o" * 50 + b"*z$"
    odd = b"Crawl-delay: nan\nUser-agent\n: x\nDisallow\nAllow: %zz\nUser-agent: *\nCrawl-delay: -1e999\nDisallow: /a*$*$**%%\n"
    yield "robots-noise", COMES, plain, of(noise(50_000))
    yield "robots-odd", COMES, plain, of(odd)
    yield "robots-page", COMES, plain, of(b"<html><body>Not found</body></html>", "text/html")
    yield "robots-long", COMES, plain, of(b"# nothing\n" * 200_000 + b"User-agent: *\nDisallow: /\n")
    yield (
        "robots-many-rules",
        COMES,
        plain,
        of(b"User-agent: *\n" + b"".join(b"Disallow: /%d*a*b*c\n" % i for i in range(20_000))),
    )
    yield "robots-endless", COMES, plain, stream(b"# nothing\n" * 1_000, 0.0)
    yield (
        "robots-slow-pattern",
        "robots.txt disallows it|it comes",
        plain,
        of(slow_pattern),
    )
    yield "robots-forbids", "robots.txt disallows it", plain, of(b"\xef\xbb\xbfuser-AGENT:*\r\ndisALLOW:/ # all")
    yield "robots-fails", f"{unreadable} .HTTP 503", plain, fails
    yield "robots-silent", f"{unreadable} .{TOO_LATE}", plain, silent
    yield "robots-in-a-loop", COMES, plain, around


def words_to_caches() -> Iterator[tuple[str, str, Answer]]:
    """To be met with a cache, and without one."""
    noisy = b"".join(b"%s: \xff\xfe%s\r\n" % (name, name) for name in (b"Cache-Control", b"ETag", b"Vary", b"Expires", b"Age"))
    odd = {"Cache_Control": f'max-age={"9" * 400}, max-age=-1, =, no-cache="', "Expires": "0", "Age": "-7", "Date": "tomorrow"}

    async def unasked(request: web.Request) -> web.StreamResponse:
        return web.Response(status=304, headers={"ETag": '"1"'})

    def confirming(tag: str) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            if "If-None-Match" in request.headers:
                return web.Response(status=304, headers={"ETag": tag})
            return await body_of(html_of, ETag='"1"', Cache_Control="no-cache")(request)

        return answer

    yield "cache-noise", f"{COMES}|it has the same text as", raw(HEAD + noisy + b"Content-Length: 11\r\n\r\n<p>text</p>")
    yield "cache-odd", COMES, body_of(html_of, **odd)
    yield "cache-long-tag", COMES, body_of(html_of, ETag=f'"{"x" * 7_000}"', Cache_Control="no-cache")
    yield "cache-confirms-nothing", "HTTP 304", unasked
    yield "cache-confirms", COMES, confirming('"1"')
    yield "cache-confirms-another", f"{COMES}|HTTP 304 for another page", confirming('"2"')
