"""The examples, each as a whole over a live crawl of the local documentation server.

One runs as a script with an engine of its own; of the others only the engine is that of the session.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stream2llm_rag.integrations import BackgroundEngine

EXAMPLES = Path(__file__).parents[2] / "examples"


class Shared:
    """In place of an engine that the example would open and close."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __enter__(self) -> Any:
        return self._engine

    def __exit__(self, *_: object) -> None: ...

    async def __aenter__(self) -> Any:
        return self._engine

    async def __aexit__(self, *_: object) -> None: ...


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_guarded(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert 'if __name__ == "__main__":' in text


def test_the_one_for_langchain(real: BackgroundEngine, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("langchain_rag")
    module.BackgroundEngine = lambda engine: Shared(real)  # type: ignore[attr-defined]
    asyncio.run(module.main())
    shown = capsys.readouterr().out
    assert shown.index("prefill") < shown.index("final_context") < shown.index("first_token") < shown.index("sources:")
    assert "asyncio.tasks.html" in shown


def test_the_one_for_langgraph(real: BackgroundEngine) -> None:
    module = load("langgraph_rag")
    conversations = []
    converse = module.converse

    async def keep(engine: BackgroundEngine, url: str) -> None:
        conversations.append(await converse(engine, url))

    module.BackgroundEngine = lambda engine: Shared(real)  # type: ignore[attr-defined]
    module.converse = keep  # type: ignore[attr-defined]
    asyncio.run(module.main())
    [messages] = conversations
    assert [message.type for message in messages] == ["human", "ai", "human", "ai"]
    assert all(message.response_metadata["sources"] for message in messages[1::2])


def test_the_one_for_llama_index(real: BackgroundEngine, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("llama_index_rag")
    module.BackgroundEngine = lambda engine: Shared(real)  # type: ignore[attr-defined]
    module.main()
    assert "asyncio.tasks.html" in capsys.readouterr().out


def test_the_one_without_a_framework_as_a_user_runs_it() -> None:
    """With an engine of its own, which costs as much as all the others together; so this one alone."""
    done = subprocess.run([sys.executable, str(EXAMPLES / "plain_async.py")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "tokens were computed" in done.stdout
    assert "asyncio.tasks.html" in done.stdout
