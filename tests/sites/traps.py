"""Pages that do what a crawler must survive, and what it must say of each.

Each trap has a host of its own, so that the manners that one brings about do not cost the others. Its pages are
``/<name>/<copy>`` and what they lead to lies below; ``request.path`` is all that a trap knows of itself.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMES = "it comes"
_TOO_LARGE = "it is larger than"
_TOO_LATE = "no complete answer within"
_NO_ANSWER = "no valid answer"
_BROKEN_OFF = "the connection broke off before the answer, at each of 3 tries"
_WORD = "Straße"  # to be found in the text of pages whose charset can be known


@dataclass(frozen=True, slots=True)
class Trap:
    """``outcome`` is a pattern for what a crawl must say of each of its pages: COMES, or the reason to skip it."""

    name: str
    outcome: str
    answer: Answer
    robots: Answer | None = None


@cache
def all_traps() -> tuple[Trap, ...]:
    """One of each kind."""
    groups = (_slow, _large, _redirects, _charsets, _markup, _overload, _wire, _robots, _pages)
    return tuple(Trap(*each) for group in groups for each in group())


def _html(request: web.Request, *more: str) -> bytes:
    head = f"<head><title>{request.path}</title></head>"
    return f"<html>{head}<body><p>This is {request.path}.</p>{''.join(more)}</body></html>".encode()


def _page(request: web.Request) -> web.Response:
    return web.Response(body=_html(request), content_type="text/html")


async def _plain(request: web.Request) -> web.StreamResponse:
    return _page(request)


def _bytes(make: Callable[[web.Request], bytes], content_type: str = "text/html", **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=make(request), headers={**({"Content-Type": content_type} if content_type else {}), **names})

    return answer


def _raw(*pieces: bytes, pause_s: float | None = None) -> Answer:
    """Write these bytes past the HTTP library, the last again and again where there is a pause; then close the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        for piece in pieces:
            transport.write(piece)
        while pause_s is not None and not transport.is_closing():
            await asyncio.sleep(pause_s)
            transport.write(pieces[-1])
        transport.close()
        return await asyncio.Future()  # cancelled with the connection

    return answer


def _stream(chunk: bytes, pause_s: float, **headers: str) -> Answer:
    """A body without end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html", **headers})
        await response.prepare(request)
        while True:
            await response.write(chunk)
            await asyncio.sleep(pause_s)

    return answer


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


def _slow() -> Iterator[tuple[str, str, Answer]]:
    async def silent(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return _page(request)

    yield "slow", COMES, slow
    yield "silent", _TOO_LATE, silent
    yield "drips-body", _TOO_LATE, _stream(b"x", 0.2)
    yield "drips-headers", _TOO_LATE, _raw(_HEAD, b"X-More: 1\r\n", pause_s=0.2)
    yield "continues-for-ever", _TOO_LATE, _raw(b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.01)


def _large() -> Iterator[tuple[str, str, Answer]]:
    bomb = gzip.compress(bytes(50_000_000))
    fields = b"".join(b"X-%d: 1\r\n" % i for i in range(5_000))
    yield "endless", _TOO_LARGE, _stream(b"<p>more</p>" * 1_000, 0.0)
    yield "says-it-is-large", _TOO_LARGE, _raw(_HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x", pause_s=0.2)
    yield "gzip-bomb", _TOO_LARGE, _bytes(lambda _: bomb, Content_Encoding="gzip")
    yield "deflate-bomb", _TOO_LARGE, _bytes(lambda _: zlib.compress(bytes(50_000_000)), Content_Encoding="deflate")
    yield (
        "bomb-in-a-bomb",
        "its content encoding is 'gzip, gzip'",
        _bytes(lambda _: gzip.compress(bomb), Content_Encoding="gzip, gzip"),
    )
    yield "huge-header", _NO_ANSWER, _bytes(_html, X_Huge="x" * 100_000)
    yield (
        "headers-without-end",
        f"{_NO_ANSWER}|{_TOO_LATE}",
        _raw(_HEAD, fields, pause_s=0.0),
    )


def _redirects() -> Iterator[tuple[str, str, Answer]]:
    def to(location: Callable[[web.Request], str]) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": location(request)})

        return answer

    def chain(length: int) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            num_hops = len(request.path.split("/")) - 3
            return (
                _page(request) if num_hops == length else web.Response(status=301, headers={"Location": f"{request.path}/on"})
            )

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


def _charsets() -> Iterator[tuple[str, str, Answer]]:
    def text(request: web.Request) -> str:
        return f"<html><body><p>{_WORD} {request.path}</p></body></html>"

    utf_16 = "text/html;charset=utf-16be"

    def encoded(charset: str, head: str = "") -> Callable[[web.Request], bytes]:
        return lambda request: text(request).replace("<body>", f"<head>{head}</head><body>").encode(charset)

    yield "charset-missing", f"{COMES} with {_WORD}", _bytes(encoded("utf-8"))
    yield "charset-missing-latin", f"{COMES} with {_WORD}", _bytes(encoded("cp1252"))
    yield "charset-in-meta", f"{COMES} with {_WORD}", _bytes(encoded("cp1252", '<meta charset="cp1252">'))
    yield "charset-not-in-meta", f"{COMES} with {_WORD}", _bytes(encoded("utf-16-be", '<meta charset="utf-8">'), utf_16)
    yield "charset-bom", f"{COMES} with {_WORD}", _bytes(encoded("utf-16"), "text/html; charset=iso-8859-1")
    yield "charset-unknown", f"{COMES} with {_WORD}", _bytes(encoded("utf-8"), "text/html; charset=utf-42")
    yield "charset-nonsense", f"{COMES} with {_WORD}", _bytes(encoded("utf-8"), 'text/html; charset="; ;;=\x80\xff')
    yield "charset-wrong-utf-8", COMES, _bytes(encoded("cp1252"), "text/html; charset=utf-8")
    yield "charset-wrong-ascii", COMES, _bytes(encoded("utf-8"), "text/html; charset=us-ascii")
    yield "charset-wrong-utf-16", f"{COMES}|it has no text", _bytes(encoded("utf-8"), "text/html; charset=utf-16")


def _markup() -> Iterator[tuple[str, str, Answer]]:
    def of(*more: str) -> Answer:
        return _bytes(lambda request: _html(request, *more))

    laughs = (
        '<!DOCTYPE html [<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)) + "]>"
    )
    yield "markup-unclosed", COMES, of("<div><table><tr><td><b><i><p>x" * 50)
    yield "markup-deep", f"{COMES}|not extracted within|could not be extracted", of("<div>" * 50_000)
    yield "markup-crossed", COMES, of("<b><i></b></i><p></div></table></td>" * 1_000)
    yield "markup-nulls", COMES, of("\0" * 1_000, "<p\0>x</p\0>")
    yield "markup-long-attribute", COMES, of(f'<p title="{"x" * 500_000}">x</p>')
    yield "markup-open-comment", COMES, of("<!-- " + "x" * 10_000)
    yield "markup-open-script", COMES, of("<script>" + "x" * 10_000)
    yield "markup-many-links", COMES, of(*(f'<a href="#{i}">x</a><a href="javascript:{i}">y</a>' for i in range(5_000)))
    yield "markup-odd-base", COMES, of('<base href="javascript:alert(1)"><a href="[">x</a><a href="http://[::1">y</a>')
    yield "markup-controls", COMES, _bytes(lambda request: _html(request) + bytes(range(256)) * 100)
    yield "markup-laughs", COMES, _bytes(lambda request: laughs.encode() + _html(request, "&a11;"), "application/xhtml+xml")
    yield (
        "markup-random",
        f"{COMES}|could not be extracted",
        _bytes(lambda request: _noise(100_000, zlib.crc32(request.path.encode()))),
    )


def _noise(num_bytes: int, seed: int = 1) -> bytes:
    state, noise = seed, bytearray()
    while len(noise) < num_bytes:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        noise += state.to_bytes(8, "big")
    return bytes(noise)


def _overload() -> Iterator[tuple[str, str, Answer]]:
    def failing(num_failures: float, status: int, **headers: str) -> Answer:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        num_asked: Counter[str] = Counter()

        async def answer(request: web.Request) -> web.StreamResponse:
            num_asked[request.path] += 1
            if num_asked[request.path] > num_failures:
                return _page(request)
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


def _wire() -> Iterator[tuple[str, str, Answer]]:
    async def reset(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return await asyncio.Future()

    async def reset_in_the_body(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html", "Content-Length": "100000"})
        await response.prepare(request)
        await response.write(b"<p>so far</p>")
        return await reset(request)

    yield "reset", _BROKEN_OFF, reset
    yield "reset-in-the-body", _NO_ANSWER, reset_in_the_body
    yield "closed-at-once", _BROKEN_OFF, _raw()
    yield "not-http", _NO_ANSWER, _raw(b"220 mail.example ESMTP\r\n")
    yield "bad-status", _NO_ANSWER, _raw(b"HTTP/1.1 99999 Wow\r\n\r\n")
    yield "bad-chunks", _NO_ANSWER, _raw(_HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\nx")
    yield "huge-chunk", f"{_NO_ANSWER}|{_TOO_LARGE}", _raw(_HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx")
    yield "two-lengths", f"{_NO_ANSWER}|{COMES}", _raw(_HEAD + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello")
    yield "short-body", _NO_ANSWER, _raw(_HEAD + b"Content-Length: 50\r\n\r\nhello")
    yield "unheard-of-encoding", "its content encoding is 'x-own'", _bytes(_html, Content_Encoding="x-own")
    yield "not-gzip", _NO_ANSWER, _raw(_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello")


def _robots() -> Iterator[tuple[str, str, Answer, Answer]]:
    def of(body: bytes, content_type: str = "text/plain") -> Answer:
        return _bytes(lambda _: body, content_type)

    async def fails(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async def silent(request: web.Request) -> web.StreamResponse:
        return await asyncio.Future()

    async def around(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/robots.txt"})

    unreadable = "robots.txt could not be read"
    slow_pattern = b"User-agent: *\nDisallow: /" + b"*o" * 50 + b"*z$"
    odd = b"Crawl-delay: nan\nUser-agent\n: x\nDisallow\nAllow: %zz\nUser-agent: *\nCrawl-delay: -1e999\nDisallow: /a*$*$**%%\n"
    yield "robots-noise", COMES, _plain, of(_noise(50_000))
    yield "robots-odd", COMES, _plain, of(odd)
    yield "robots-page", COMES, _plain, of(b"<html><body>Not found</body></html>", "text/html")
    yield "robots-long", COMES, _plain, of(b"# nothing\n" * 200_000 + b"User-agent: *\nDisallow: /\n")
    yield (
        "robots-many-rules",
        COMES,
        _plain,
        of(b"User-agent: *\n" + b"".join(b"Disallow: /%d*a*b*c\n" % i for i in range(20_000))),
    )
    yield "robots-endless", COMES, _plain, _stream(b"# nothing\n" * 1_000, 0.0)
    yield (
        "robots-slow-pattern",
        "robots.txt disallows it|it comes",
        _plain,
        of(slow_pattern),
    )
    yield "robots-forbids", "robots.txt disallows it", _plain, of(b"\xef\xbb\xbfuser-AGENT:*\r\ndisALLOW:/ # all")
    yield "robots-fails", f"{unreadable} .HTTP 503", _plain, fails
    yield "robots-silent", f"{unreadable} .{_TOO_LATE}", _plain, silent
    yield "robots-in-a-loop", COMES, _plain, around


def _pages() -> Iterator[tuple[str, str, Answer]]:
    twin = _bytes(lambda _: b"<p>The same text at every address.</p>")

    async def maze(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=_html(request, *(f'<a href="{request.path}/{turn}">on</a>' for turn in "ab")), content_type="text/html"
        )

    yield "extractor-crashes", "was killed by SIGSEGV", _plain
    yield "extractor-exits", "ended with exit code 3", _plain
    yield "extractor-hangs", "its text was not extracted within", _plain
    yield "extractor-raises", "RuntimeError.'no idea what this is'", _plain
    yield "extractor-is-greedy", "MemoryError", _plain
    yield "picture", "its content type is image/png, which is not text", _bytes(_noise_of, "image/png")
    yield "no-type", "its content type is", _bytes(_html, "application/octet-stream")
    yield "not-a-pdf", "could not be extracted|it has no text", _bytes(_noise_of, "application/pdf")
    yield "empty", "it has no text", _bytes(lambda _: b"")
    yield "twins", f"{COMES}|it has the same text as", twin
    yield "maze", COMES, maze


def _noise_of(request: web.Request) -> bytes:
    return _noise(10_000)
