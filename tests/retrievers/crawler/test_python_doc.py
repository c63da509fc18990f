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

FOLDER = Path("/usr/share/doc/python3-doc/html").resolve()
TEXT = "library/asyncio-task.html"

pytestmark = pytest.mark.skipif(
    not (FOLDER / TEXT).is_file(), reason="python3-doc is not installed. Write: apt-get install python3-doc"
)


@pytest.fixture
async def documentation() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_static("/", FOLDER)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_the_page_that_answers_is_found_and_all_text_is_sane(documentation):
    seed = f"http://{documentation}/library/index.html"
    crawler = WebCrawler([seed], allow_private_hosts=[documentation], min_relevance=0.1, max_pages=4)
    async with crawler:
        result = await read(crawler.stream("How do I cancel an asyncio task?"))
    assert len(result.documents) == 4
    best = max(result.documents, key=lambda document: document.score)
    assert best.source == f"http://{documentation}/{TEXT}"
    assert best.title.startswith("Coroutines and Tasks")
    assert "Tasks can easily and safely be cancelled. When a task is cancelled," in " ".join(best.text.split())
    for document in result.documents:
        assert_sane(document)


def assert_sane(document) -> None:
    """Prose of a person: a title, words, lines, no markup, no broken characters."""
    text = document.text
    assert document.title
    assert "documentation" in document.title.lower()
    assert len(text) > 200
    assert "\ufffd" not in text
    assert "Ã" not in text  # UTF-8 read as Windows-1252
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") and char not in "\n\t"]
    assert re.search(r"</?(?:div|span|script|p|a)[ >]", text) is None
    words = text.split()
    assert sum(map(len, words)) / len(words) < 25
    assert sum(char.isalpha() for char in text) > len(text) / 2
