"""A site in a process of its own.

Every host is an address of its own in 127.0.0.0/8, all on one port.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from aiohttp import web

from tests.sites.library import NUM_PARAGRAPHS, Library
from tests.sites.traps import Answer, Trap, all_traps

NUM_LIBRARY_HOSTS = 8
_ATTEMPTS = 20
_PAGE_HEADERS = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "max-age=600"}


@dataclass(frozen=True, slots=True)
class Site:
    """Ordinary pages, each held back by ``latency_s``, and every trap as often as there are ``num_copies``.

    Once it runs, all its hosts share ``port``, and ``pid`` is the process that serves them.
    """

    num_pages: int
    num_copies: int = 0
    num_paragraphs: int = NUM_PARAGRAPHS
    latency_s: float = 0.0
    port: int = 0
    pid: int = 0

    @property
    def library(self) -> Library:
        """The ordinary pages."""
        return Library(
            self.num_pages, tuple(f"127.0.1.{i + 1}:{self.port}" for i in range(NUM_LIBRARY_HOSTS)), self.num_paragraphs
        )

    @property
    def hosts(self) -> list[str]:
        """All that a crawler must be allowed."""
        return [*self.library.hosts, *(f"{address}:{self.port}" for address in _trap_addresses())]

    def traps(self) -> dict[str, Trap]:
        """Each trap by the URLs of its copies."""
        copies = range(self.num_copies)
        addresses = zip(all_traps(), _trap_addresses(), strict=True)
        return {f"http://{address}:{self.port}/{trap.name}/{copy}": trap for trap, address in addresses for copy in copies}

    def trap_links(self, number: int) -> tuple[str, ...]:
        """Those that stand on this ordinary page: the traps go round the pages after the entrance."""
        return tuple(list(self.traps())[number - 1 :: max(1, self.num_pages - 1)]) if number else ()


def _trap_addresses() -> list[str]:
    return [f"127.0.2.{i + 1}" for i in range(len(all_traps()))]


@contextmanager
def running(site: Site) -> Iterator[Site]:
    """The site, in another process for the time of the block."""
    command = [sys.executable, "-m", "tests.sites.server", json.dumps(asdict(site))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield replace(site, port=int(process.stdout.readline()), pid=process.pid)
        process.stdin.close()  # which ends it


async def _serve(site: Site) -> None:
    app = web.Application()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    app.router.add_get("/{path:.*}", lambda request: handler(request))
    await runner.setup()
    try:
        port = await _listen(runner, [host.partition(":")[0] for host in site.hosts])
        handler = _handler(replace(site, port=port))
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, addresses: list[str]) -> int:
    """One port that is free on every address."""
    for _ in range(_ATTEMPTS):
        started = [web.TCPSite(runner, addresses[0], 0)]
        await started[0].start()
        port: int = runner.addresses[-1][1]
        try:
            for address in addresses[1:]:
                started.append(web.TCPSite(runner, address, port))
                await started[-1].start()
        except OSError:
            for each in started:
                if each in runner.sites:
                    await each.stop()
        else:
            return port
    raise OSError(f"no port is free on each of {len(addresses)} addresses")


def _handler(site: Site) -> Answer:
    library = site.library
    pages = {"/warm-up": b"<html><body><article><p>No link leads away from here.</p></article></body></html>"}
    pages |= {library.path(i): library.html(i, site.trap_links(i)) for i in range(library.num_pages)}
    traps = {trap.name: trap for trap in all_traps()}
    by_address = dict(zip(_trap_addresses(), all_traps(), strict=True))

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path in pages:
            await asyncio.sleep(site.latency_s)
            return web.Response(body=pages[request.path], headers=_PAGE_HEADERS)
        if request.path == "/robots.txt":
            trap = by_address.get(request.url.host or "")
            return await trap.robots(request) if trap and trap.robots else web.Response(status=404)
        trap = traps.get(request.path.split("/")[1])
        return await trap.answer(request) if trap else web.Response(status=404)

    return handle


if __name__ == "__main__":
    asyncio.run(_serve(Site(**json.loads(sys.argv[1]))))
