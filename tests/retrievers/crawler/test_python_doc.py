"""A whole site as it is served to the world: Debian's package of Python's documentation, on loopback."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from stream2llm_rag.retrievers.crawler import WebCrawler

from .conftest import read

FOLDER = Path("/usr/share/doc/python3-doc/html")
TEXT = "library/asyncio-task.html"

pytestmark = pytest.mark.skipif(
    not (FOLDER / TEXT).is_file(), reason="python3-doc is not installed. Write: apt-get install python3-doc"
)


@pytest.fixture
async def documentation() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_static("/", FOLDER.resolve(), follow_symlinks=True)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_its_pages_are_read_best_first_and_their_text_is_sane(documentation):
    crawler = WebCrawler(
        [f"http://{documentation}/library/index.html"],
        allow_private_hosts=[documentation],
        max_pages=20,
        max_page_bytes=4_000_000,
    )
    async with crawler:
        result = await read(crawler.stream("How do I cancel an asyncio task?"))
    assert len(result.documents) == 20
    assert f"http://{documentation}/{TEXT}" in result.sources
    best = max(result.documents, key=lambda document: document.score)
    assert "asyncio" in best.title.lower()
    for document in result.documents:
        assert_sane(document)
    task = next(document for document in result.documents if document.source.endswith(TEXT))
    assert "Coroutines and Tasks" in task.title
    assert "raised inside the coroutine" in " ".join(task.text.split()) or "CancelledError" in task.text
    assert task.text.count("Task.cancel") <= 40  # neither lost nor repeated without end
    assert "function() {" not in task.text


def assert_sane(document) -> None:
    """Prose of a person: a title, words, lines, no markup, no broken characters."""
    text = document.text
    assert document.title
    assert "—" in document.title or "Python" in document.title or "Docs" in document.title
    assert len(text) > 200
    assert "\ufffd" not in text
    assert "Ã" not in text  # UTF-8 read as Windows-1252
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") and char not in "\n\t"]
    assert re.search(r"</?(?:div|span|script|p|a)[ >]", text) is None
    words = text.split()
    assert sum(map(len, words)) / len(words) < 25
    assert sum(char.isalpha() for char in text) > len(text) / 2
