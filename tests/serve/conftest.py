"""The route on a loopback port over an engine that is not real; and the whole server, once, on the real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

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
    engine: FakeEngine, packed: dict[str, bytes], limits: Limits | None = None, keys: tuple[str, ...] = ()
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
        server = _Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        serving_task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", engine, service)
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


@pytest.fixture(scope="session")
def server_url(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`stream2llm serve` on the tiny model, as a process of its own; it must end by itself when it is asked to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        "--dtype=float32 --enforce-eager --block-size=32 --max-model-len=8192 --max-num-batched-tokens=1024 "
        f"--host=127.0.0.1 --port={port} --api-key={API_KEY} --max-streams=64 --stream-heartbeat-timeout-s=3"
    )
    command = [sys.executable, "-c", "from stream2llm_rag.cli import main; main()", "serve", str(model_path), *options.split()]
    log = tmp_path_factory.mktemp("serve") / "server.log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, process_group=0) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, process, log)
            yield url
            process.terminate()
            process.wait(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in log.read_text(), log.read_text()[-4000:]


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
                assert response.status == 200
                return
        except (URLError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)
    pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
