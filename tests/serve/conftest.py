"""The route on a loopback port, over an engine that is not real."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette

from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.serve.limits import Limits
from stream2llm_rag.serve.messages import Model
from stream2llm_rag.serve.plugin import StreamPlugin, serving
from stream2llm_rag.serve.service import Service
from stream2llm_rag.serve.tokenizers import pack

API_KEY = "sesame"


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="session")
def packed(tokenizer: Any) -> dict[str, bytes]:
    files = pack(tokenizer)
    assert files is not None
    return files


@dataclass
class Served:
    """A server of streams in this process: ``engine`` is what it serves."""

    url: str
    engine: FakeEngine
    service: Service


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def served_here(
    engine: FakeEngine,
    packed: dict[str, bytes],
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    certificate: Path | None = None,
) -> AsyncIterator[Served]:
    model = Model(name="tiny", max_model_len=engine.max_model_len, vocab_size=engine.vocab_size, tokenizer=packed)
    service = Service(engine, model, engine.tokenizer, limits or Limits())
    app, plugin = Starlette(), StreamPlugin()
    with serving(service):
        plugin.attach_router(app)  # type: ignore[arg-type]
        args = Namespace(allowed_origins=["https://app.example"], api_key=list(keys))
        await plugin.init_state(None, app.state, args)
    if keys:
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        app.add_middleware(AuthenticationMiddleware, tokens=list(keys))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ssl_certfile=certificate)
        server = _Server(config)
        serving_task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            scheme = "http" if certificate is None else "https"
            yield Served(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}", engine, service)
        finally:
            server.should_exit = True
            await serving_task


@pytest.fixture
def fake(tokenizer: Any) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
async def here(fake: FakeEngine, packed: dict[str, bytes]) -> AsyncIterator[Served]:
    async with served_here(fake, packed) as served:
        yield served
        async with asyncio.timeout(60):
            while fake.sessions or served.service.clients.num_streams:  # noqa: ASYNC110 - a server tells nobody
                await asyncio.sleep(0.01)
