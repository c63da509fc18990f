"""A site on loopback, an engine without a model, and the command as a user runs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from typer.testing import CliRunner, Result

from stream2llm_rag.cli.app import app
from stream2llm_rag.engine.fake import FakeEngine


class Site:
    """Serves ``pages``, HTML by path, and nothing else."""

    def __init__(self, pages: dict[str, str]) -> None:
        self.pages = pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((body or "").encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def html(title: str, links: tuple[str, ...] = ()) -> str:
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    text = f"<p>{title} says how a task is cancelled: call its cancel method, then await it and catch what it raises.</p>" * 3
    return f"<html><head><title>{title}</title></head><body><article><h1>{title}</h1>{text}</article>{anchors}</body></html>"


@pytest.fixture
def site() -> Iterator[Site]:
    pages = {"/": html("Start", ("/one", "/two")), "/one": html("One"), "/two": html("Two")}
    site = Site(pages)
    yield site
    site.close()


class OpenedEngine(FakeEngine):
    """A fake engine in the place of the real one: takes the same arguments, and is opened and closed."""

    opened: ClassVar[list[dict[str, Any]]] = []
    model_path: Path

    def __init__(self, model: str, **engine_args: Any) -> None:
        from transformers import AutoTokenizer

        super().__init__(AutoTokenizer.from_pretrained(self.model_path), max_model_len=16384)
        self.opened.append({"model": model, **engine_args})

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        assert not self.sessions

    async def reset_prefix_cache(self) -> bool:
        return True


@pytest.fixture
def fake_engine(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[OpenedEngine]:
    monkeypatch.setattr(OpenedEngine, "model_path", model_path, raising=False)
    monkeypatch.setattr(OpenedEngine, "opened", [])
    for command in ("ask", "demo"):
        monkeypatch.setattr(f"stream2llm_rag.cli.{command}.Stream2LLMEngine", OpenedEngine)
    return OpenedEngine


def unboxed(text: str) -> str:
    """The words of an error that stands in a box."""
    return " ".join(word for word in text.split() if not set(word) & set("╭╮╰╯│"))


def run(*arguments: str | Path) -> Result:
    """Run ``stream2llm`` with these arguments in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
