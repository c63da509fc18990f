"""A real site without the internet: the documentation that Python serves of itself."""

from __future__ import annotations

import pydoc
from collections.abc import Iterator

import pytest

from stream2llm_rag.retrievers.crawler import WebCrawler

from .conftest import read


@pytest.fixture
def documentation() -> Iterator[str]:
    server = pydoc._start_server(pydoc._url_handler, "127.0.0.1", 0)
    assert server.error is None
    try:
        yield server.url
    finally:
        server.stop()
        server.join()


async def test_the_documentation_of_asyncio_fills_a_context(documentation):
    host = documentation.removeprefix("http://").rstrip("/")
    async with WebCrawler([f"{documentation}asyncio.html"], allow_private_hosts=[host]) as crawler:
        result = await read(crawler.stream("How do I cancel an asyncio task?"))
    assert 8 <= len(result.documents) <= 12
    assert sum(len(document.text) for document in result.documents) / 4 > 8_000
    assert all(document.text.isprintable() or "\n" in document.text for document in result.documents)
    package = next(document for document in result.documents if document.source == f"{documentation}asyncio.html")
    assert package.title == "Pydoc: package asyncio"
    assert "class Task" in package.text
    assert result.deltas[-1].num_remaining == 0
