"""The examples: each over a live crawl of the local documentation server; one as a script, with an engine of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

from stream2llm_rag.demo import DocumentationServer
from stream2llm_rag.integrations import BackgroundEngine

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with DocumentationServer() as server:
        yield server.page("tempfile")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_guarded(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert 'if __name__ == "__main__":' in text


async def test_the_one_for_langchain(real: BackgroundEngine, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await load("langchain_rag").answer(real, url)
    shown = capsys.readouterr().out
    assert "context_delta" in shown
    assert f"sources: {url}" in shown


async def test_the_one_for_langgraph(real: BackgroundEngine, url: str) -> None:
    messages = await load("langgraph_rag").converse(real, url)
    assert [message.type for message in messages] == ["human", "ai", "human", "ai"]
    assert all(message.response_metadata["sources"] for message in messages[1::2])


async def test_the_one_for_llama_index(real: BackgroundEngine, url: str) -> None:
    response = await asyncio.to_thread(load("llama_index_rag").ask, real, url)
    assert response.response
    assert url in response.metadata["sources"]


def test_the_one_without_a_framework_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / "plain_async.py")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "tokens were computed" in done.stdout
    assert "asyncio.tasks.html" in done.stdout
