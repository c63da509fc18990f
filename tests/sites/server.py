"""A site in a process of its own.

``python -m tests.sites.server --pages 100 --copies 1`` prints its port and runs until its stdin ends.

Every host is an address of its own in 127.0.0.0/8, all on one port.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from tests.sites.library import Library
from tests.sites.traps import Answer, Trap, all_traps

NUM_LIBRARY_HOSTS = 8
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Site:
    """What is served: ordinary pages, and each trap as often as there are ``num_copies``.

    All hosts share ``port``; ``pid`` is the process that serves them.
    """

    num_pages: int
    num_copies: int
    port: int = 0
    pid: int = 0

    @property
    def library(self) -> Library:
        """The ordinary pages."""
        return Library(self.num_pages, tuple(f"127.0.1.{i + 1}:{self.port}" for i in range(NUM_LIBRARY_HOSTS)))

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
def running(num_pages: int, num_copies: int = 0, *, latency_s: float = 0.0) -> Iterator[Site]:
    """A site in another process, for the time of the block. ``latency_s`` holds back each ordinary page."""
    options = ["--pages", str(num_pages), "--copies", str(num_copies), "--latency-s", str(latency_s)]
    command = [sys.executable, "-m", "tests.sites.server", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Site(num_pages, num_copies, int(process.stdout.readline()), process.pid)
        process.stdin.close()


async def _serve(num_pages: int, num_copies: int, latency_s: float) -> None:
    app = web.Application()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    app.router.add_get("/{path:.*}", lambda request: handler(request))
    await runner.setup()
    try:
        port = await _listen(runner, [host.partition(":")[0] for host in Site(num_pages, num_copies).hosts])
        handler = _handler(Site(num_pages, num_copies, port), latency_s)
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


def _handler(site: Site, latency_s: float) -> Answer:
    library = site.library
    pages = {library.path(i): library.html(i, site.trap_links(i)) for i in range(library.num_pages)}
    traps = {trap.name: trap for trap in all_traps()}
    by_address = dict(zip(_trap_addresses(), all_traps(), strict=True))

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path in pages:
            await asyncio.sleep(latency_s)
            return web.Response(body=pages[request.path], content_type="text/html", charset="utf-8")
        if request.path == "/robots.txt":
            trap = by_address.get(request.url.host or "")
            return await trap.robots(request) if trap and trap.robots else web.Response(status=404)
        trap = traps.get(request.path.split("/")[1])
        return await trap.answer(request) if trap else web.Response(status=404)

    return handle


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, required=True)
    parser.add_argument("--copies", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=0.0)
    given = parser.parse_args()
    asyncio.run(_serve(given.pages, given.copies, given.latency_s))


if __name__ == "__main__":
    main()
