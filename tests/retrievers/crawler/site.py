"""A web site on loopback whose pages a test writes, and which records what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """``pages`` maps a path to its handler; others are not found. ``gate`` holds back the pages that wait for it."""

    def __init__(self) -> None:
        self.pages: dict[str, Handler] = {}
        self.requests: list[str] = []
        self.connections: set[object] = set()
        self.num_active = 0
        self.max_active = 0
        self.gate = asyncio.Event()
        self._changed = asyncio.Condition()
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def answer(
        self,
        path: str,
        body: str | bytes = b"",
        *,
        content_type: str = "text/html",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Serve these bytes at ``path``."""
        data = body.encode() if isinstance(body, str) else body

        async def handler(request: web.Request) -> web.Response:
            return web.Response(body=data, status=status, headers={"Content-Type": content_type, **(headers or {})})

        self.pages[path] = handler

    def page(self, path: str, *links: str, text: str | None = None, head: str = "", gated: bool = False) -> None:
        """Serve an HTML page with these links and a text of its own."""
        anchors = "".join(f'<a href="{link}">link</a> ' for link in links)
        text = text or f"Text of {path}."
        head = f"<head><title>Title of {path}</title>{head}</head>"
        self.answer(path, f"<html>{head}<body><p>{text}</p>{anchors}</body></html>")
        if gated:
            self.pages[path] = self._behind_the_gate(self.pages[path])

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.answer(path, status=status, headers={"Location": location})

    def _behind_the_gate(self, handler: Handler) -> Handler:
        async def gated(request: web.Request) -> web.StreamResponse:
            await self.gate.wait()
            return await handler(request)

        return gated

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until this holds; it is looked at whenever a request comes or goes."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def until_idle(self) -> None:
        await self.until(lambda: self.num_active == 0)

    async def _count(self, change: int) -> None:
        self.num_active += change
        self.max_active = max(self.max_active, self.num_active)
        async with self._changed:
            self._changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path_qs
        self.requests.append(path)
        self.connections.add(request.transport)
        try:
            await self._count(+1)
            handler = self.pages.get(path)
            return await handler(request) if handler else web.Response(status=404)
        finally:
            await self._count(-1)


@asynccontextmanager
async def serve() -> AsyncIterator[Site]:
    """A site on a free port. Handlers are cancelled when their client goes."""
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        site.port = runner.addresses[0][1]
        yield site
    finally:
        await runner.cleanup()
