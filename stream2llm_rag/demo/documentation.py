"""Python's own documentation server, in a process of its own: a real site to crawl, without the internet."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import anyio

from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.demo.topics import DENIED, Topic
from stream2llm_rag.errors import LifecycleError, RetrievalError
from stream2llm_rag.retrievers.base import StreamingRetriever

_SCRIPT = Path(__file__).with_name("pydoc_server.py")
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0


class DocumentationServer:
    """Serves on a free port of 127.0.0.1 for as long as the ``async with`` block lasts, and never longer than this process.

    A process of its own, because making a page takes Python up to a second that an event loop cannot spare.
    Raises :class:`RetrievalError` where it does not start.
    """

    def __init__(self) -> None:
        self._process: Process | None = None
        self._url = ""

    @property
    def host(self) -> str:
        """``host:port``."""
        return urlsplit(self.url).netloc

    @property
    def url(self) -> str:
        """Address of the root page; ends with a slash."""
        if not self._url:
            raise LifecycleError(
                "the documentation server is not running. Use it inside: async with DocumentationServer() as server."
            )
        return self._url

    def page(self, module: str) -> str:
        """Address of the page of a module, such as ``asyncio.tasks``."""
        return f"{self.url}{module}.html"

    @asynccontextmanager
    async def retrievers(self, topics: Sequence[Topic], settings: Settings) -> AsyncIterator[list[StreamingRetriever]]:
        """A crawler for each topic, with the manners that a site on the web expects; they live as long as the block."""
        from stream2llm_rag.retrievers.crawler import WebCrawler

        async with AsyncExitStack() as opened:
            crawlers: list[StreamingRetriever] = []
            for topic in topics:
                crawler = WebCrawler(
                    [self.page(topic.module)],
                    order="breadth",  # the demo shows the overlap, on the same pages whatever is asked
                    deny=DENIED,
                    max_pages=settings.max_pages,
                    per_host_concurrency=1,
                    delay_s=settings.delay_s,
                    num_extractors=1,
                    timeout_s=600.0,
                    allow_private_hosts=[self.host],
                )
                crawlers.append(await opened.enter_async_context(crawler))
            yield crawlers

    async def __aenter__(self) -> Self:
        # -I and -S: neither the environment nor site-packages add pages. A session of its own: Ctrl-C reaches us alone.
        command = (sys.executable, "-I", "-S", str(_SCRIPT))
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        try:
            self._url = await self._read_url(self._process)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _read_url(self, process: Process) -> str:
        assert process.stdout is not None
        line = b""
        with anyio.move_on_after(_START_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line.startswith(b"http://"):
            raise RetrievalError(f"Python's documentation server did not start within {_START_TIMEOUT_S:g} s: {line!r}")
        return line.decode().strip()

    async def _stop(self) -> None:
        """End the process: by the end of its input, and by force where that does not help."""
        process, self._process, self._url = self._process, None, ""
        if process is None:
            return
        with anyio.CancelScope(shield=True):
            assert process.stdin is not None
            process.stdin.close()
            with anyio.move_on_after(_STOP_TIMEOUT_S):
                await process.communicate()
            if process.returncode is None:
                process.kill()
                await process.communicate()
