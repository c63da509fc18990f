"""What traps are made of: ways to answer a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMES = "it comes"
TOO_LARGE = "it is larger than"
TOO_LATE = "no complete answer within"
NO_ANSWER = "no valid answer"
BROKEN_OFF = "the connection broke off before the answer, at each of 3 tries"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


@dataclass(frozen=True, slots=True)
class Trap:
    """``outcome`` is a pattern for what a crawl must say of each of its pages: COMES, or the reason to skip it."""

    name: str
    outcome: str
    answer: Answer
    robots: Answer | None = None


def html_of(request: web.Request, *more: str) -> bytes:
    """A page with a text of its own."""
    head = f"<head><title>{request.path}</title></head>"
    return f"<html>{head}<body><p>This is {request.path}.</p>{''.join(more)}</body></html>".encode()


def page(request: web.Request) -> web.Response:
    """An answer as it should be."""
    return web.Response(body=html_of(request), content_type="text/html")


async def plain(request: web.Request) -> web.StreamResponse:
    """A host that always gives that one."""
    return page(request)


def body_of(make: Callable[[web.Request], bytes], content_type: str = "text/html", **headers: str) -> Answer:
    """A body as it is, with these headers; in their names ``_`` stands for ``-``."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=make(request), headers={**({"Content-Type": content_type} if content_type else {}), **names})

    return answer


def raw(*pieces: bytes, pause_s: float | None = None) -> Answer:
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


def stream(chunk: bytes, pause_s: float, **headers: str) -> Answer:
    """A body without end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html", **headers})
        await response.prepare(request)
        while True:
            await response.write(chunk)
            await asyncio.sleep(pause_s)

    return answer


def noise(num_bytes: int, seed: int = 1) -> bytes:
    """The same bytes each time, in no order."""
    state, noise = seed, bytearray()
    while len(noise) < num_bytes:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        noise += state.to_bytes(8, "big")
    return bytes(noise)


def noise_of(request: web.Request) -> bytes:
    """A short body of them."""
    return noise(10_000)
