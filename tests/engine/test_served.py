"""`stream2llm serve` on the tiny model, as a process of its own, and what other programs get of it. Started once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from stream2llm_rag.engine.session import Session
from stream2llm_rag.errors import CapacityError, EngineDied, EngineStartError, EngineUnreachable
from stream2llm_rag.prompt import PromptTemplate
from stream2llm_rag.serve import RemoteEngine
from stream2llm_rag.serve.addresses import stream_url
from tests.serve.frames import FRAMES

from .cases import GREEDY, Reference, collect, prompt, stream
from .conftest import computed

pytestmark = pytest.mark.timeout(900)  # the first test may have to wait for two engines to start

API_KEY = "sesame"
MAX_STREAMS = 32
HEARTBEAT_TIMEOUT_S = 3.0
EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = Path(__file__).parents[2] / "docs"


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    model: str

    def engine(self, **options: Any) -> RemoteEngine:
        return RemoteEngine(self.url, api_key=API_KEY, **options)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self._request(path, None, API_KEY), timeout=120) as response:
            text: str = response.read().decode()
            return text

    def chat(self, text: str, *, key: str = API_KEY, **fields: Any) -> dict[str, Any]:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
        request = self._request("/v1/chat/completions", json.dumps({**body, **fields}).encode(), key)
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def metric(self, name: str) -> float:
        [value] = re.findall(rf"^stream2llm:{name}{{.*}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(value)

    def _request(self, path: str, data: bytes | None, key: str) -> urllib.request.Request:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        return urllib.request.Request(self.url + path, data, headers)


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        "--dtype=float32 --enforce-eager --block-size=32 --max-model-len=8192 --max-num-batched-tokens=1024 "
        f"--host=127.0.0.1 --port={port} --api-key={API_KEY} --max-streams={MAX_STREAMS} "
        f"--stream-heartbeat-timeout-s={HEARTBEAT_TIMEOUT_S}"
    )
    command = [sys.executable, "-c", "from stream2llm_rag.cli import main; main()", "serve", str(model_path), *options.split()]
    log = tmp_path_factory.mktemp("serve") / "server.log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, process_group=0) as process:
        try:
            served = Server(f"http://127.0.0.1:{port}", process, str(model_path))
            wait_until_healthy(served, log)
            yield served
            process.terminate()
            process.wait(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log.read_text()[-4000:]


def wait_until_healthy(served: Server, log: Path) -> None:
    while served.process.poll() is None:
        try:
            served.get("/health")
        except (URLError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                served.process.wait(timeout=0.3)
        else:
            return
    pytest.fail(f"the server ended with {served.process.returncode}:\n{log.read_text()[-4000:]}")


async def held(served: Server) -> dict[str, float]:
    """What the server's engine holds after a last request, by the names of the series."""
    async with served.engine(tokenizer=object()) as engine:
        await collect(engine.generate([5, 6, 7], {**GREEDY, "max_tokens": 2}))
    levels = ("num_requests_partial", "num_requests_idle", "num_idle_blocks", "num_used_blocks")
    return {level: await anyio.to_thread.run_sync(served.metric, level) for level in levels}


@pytest.mark.parametrize("updates", [False, True], ids=["append", "update"])
async def test_a_remote_answer_is_that_of_stock_vllm(server: Server, reference: Reference, updates: bool) -> None:
    prompts = [prompt(random.Random(i).randint(1, 2000), 40 + i) for i in range(5)]
    async with server.engine() as engine:
        jobs = (stream(engine, random.Random(i), p, updates=updates) for i, p in enumerate(prompts))  # type: ignore[arg-type]
        answers = await asyncio.gather(*jobs)
    assert answers == [await reference.answer(p) for p in prompts]


async def test_what_streamed_remotely_is_not_computed_again_and_is_told(server: Server) -> None:
    tokens = prompt(1500, 90)
    async with server.engine() as engine, await engine.open(tokens[:500]) as session:
        await session.append(tokens[500:1400])
        await computed(session, 1399)
        await collect(await session.finish(tokens[1400:], GREEDY))
        assert session.stats.overlap_tokens == 1399
        assert session.stats.computed_tokens == 1500
        assert session.stats.idle_s > 0


@settings(max_examples=25)
@given(frames=st.lists(FRAMES, min_size=1, max_size=8))
async def test_whatever_a_client_sends_the_next_is_served(server: Server, frames: list[str | bytes]) -> None:
    """That nothing stays held of it the next test shows."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with connect(stream_url(server.url), additional_headers=headers) as connection:
        with contextlib.suppress(ConnectionClosed):
            for frame in frames:
                await connection.send(frame)
    async with server.engine(tokenizer=object()) as engine, await engine.open([5]) as session:
        assert len(await collect(await session.finish([6], GREEDY))) == GREEDY["max_tokens"]


async def test_of_24_streams_a_third_vanishes_and_the_rest_is_right(server: Server, reference: Reference) -> None:
    """Half of the third close their sockets in the middle, the other half just fall silent, as after a power cut."""
    prompts = {number: prompt(200 + 20 * number, 60 + number) for number in range(24)}
    answers: dict[int, list[int]] = {}
    silent: list[ClientConnection] = []
    opened = asyncio.Barrier(len(prompts))

    async def ask(engine: RemoteEngine, number: int) -> None:
        tokens = prompts[number]
        session = await engine.open(tokens[:50])
        await session.append(tokens[50:150])
        await opened.wait()
        if number % 3 == 0:
            connection = vanish(engine, session)
            if number % 2 == 0:
                silent.append(connection)
            else:
                connection.transport.abort()
            return
        async with session:
            answers[number] = await collect(await session.finish(tokens[150:], GREEDY))

    async with server.engine() as engine:
        await asyncio.gather(*(ask(engine, number) for number in prompts))
        async with asyncio.timeout(120):
            for connection in silent:
                await connection.wait_closed()  # by the server, which has missed them
        assert set((await held(server)).values()) == {0.0}
    assert len(silent) == 4
    assert len(answers) == 16
    assert answers == {number: await reference.answer(prompts[number]) for number in answers}


def vanish(engine: RemoteEngine, session: Session) -> ClientConnection:
    """Neither listen nor show life any more, on the connection that is returned."""
    stream = engine._streams[session]
    for task in stream._tasks:
        task.cancel()
    return stream._connection


async def test_the_openai_routes_work_beside_open_streams(server: Server, reference: Reference) -> None:
    async with server.engine() as engine, await engine.open(prompt(500, 91)) as session:
        answer = await anyio.to_thread.run_sync(server.chat, "Hello")
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 8
        assert len(await collect(await session.finish([7], GREEDY))) == 8


async def test_who_may_set_extra_arguments_cannot_forge_an_operation(server: Server) -> None:
    before = server.metric("ops_refused_total")
    answer = await anyio.to_thread.run_sync(lambda: server.chat("Hello", vllm_xargs={"stream2llm": "finish"}))
    assert answer["usage"]["completion_tokens"] == 8  # an ordinary request
    assert server.metric("ops_refused_total") == before + 1


def test_the_series_that_the_guide_names_are_those_of_the_server(server: Server) -> None:
    exported = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics"), re.MULTILINE))
    named = set(re.findall(r"(?:stream2llm|vllm):\w+", (DOCS / "deploy.md").read_text()))
    assert {"vllm:time_to_first_token_seconds", "stream2llm:num_used_blocks"} <= named <= exported


async def test_a_wrong_key_opens_nothing(server: Server) -> None:
    with pytest.raises(EngineStartError, match="wants another API key"):
        async with RemoteEngine(server.url, api_key="wrong"):
            pass
    with pytest.raises(HTTPError, match="401"):
        server.chat("Hello", key="wrong")


async def test_a_server_that_is_full_says_so_and_takes_the_next_when_there_is_room(server: Server) -> None:
    async with server.engine(tokenizer=object()) as engine, contextlib.AsyncExitStack() as sessions:
        for _ in range(MAX_STREAMS):
            await sessions.enter_async_context(await engine.open([5, 6]))
        with pytest.raises(CapacityError, match=f"max_sessions={MAX_STREAMS}"):
            await engine.open([5, 6])
        await sessions.aclose()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(CapacityError):
                    async with await engine.open([5, 6]) as session:
                        assert len(await collect(await session.finish([7], GREEDY))) == 8
                    return


async def test_prompts_of_the_tokenizer_that_is_sent_are_those_of_the_models(server: Server) -> None:
    from transformers import AutoTokenizer

    own = PromptTemplate(AutoTokenizer.from_pretrained(server.model)).open("How?", max_prompt_tokens=4000)
    async with server.engine() as engine:
        sent = PromptTemplate(engine.tokenizer).open("How?", max_prompt_tokens=4000)
        assert engine.max_model_len == 8192
    assert (own.prefix_ids, own.suffix_ids) == (sent.prefix_ids, sent.suffix_ids)


ENGINE = re.compile(r"Stream2LLMEngine\(build_tiny_model\(\).*\)(?=,?( as engine)?,?$)", re.MULTILINE)


def served_version(name: str, url: str) -> dict[str, Any]:
    """The example with the one line changed that makes its engine, and the name for it imported."""
    text = (EXAMPLES / f"{name}.py").read_text()
    changed, num_changes = ENGINE.subn(f'RemoteEngine("{url}", api_key="{API_KEY}")', text)
    assert num_changes == 1
    assert len([1 for old, new in zip(text.splitlines(), changed.splitlines(), strict=True) if old != new]) == 1
    scope: dict[str, Any] = {"__name__": name, "RemoteEngine": RemoteEngine}
    exec(compile(changed, name, "exec"), scope)
    return scope


@pytest.mark.parametrize("name", ["langchain_rag", "langgraph_rag", "llama_index_rag"])
async def test_an_example_runs_over_the_server_with_one_line_changed(
    server: Server, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = served_version(name, server.url)["main"]
    if asyncio.iscoroutinefunction(main):
        await main()
    else:
        await anyio.to_thread.run_sync(main)
    shown = capsys.readouterr().out
    assert shown.strip()
    assert name == "langgraph_rag" or "asyncio.tasks.html" in shown


async def test_the_example_of_a_served_engine(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"__name__": "remote"}
    exec(compile((EXAMPLES / "remote.py").read_text(), "remote", "exec"), scope)
    await scope["main"](server.url, API_KEY)
    assert "asyncio.tasks.html" in capsys.readouterr().out


async def test_a_server_that_is_told_to_end_ends_its_streams_with_an_error(server: Server) -> None:
    """The last test here: what a client sees of a pod that is taken away."""
    async with server.engine(tokenizer=object()) as engine:
        session = await engine.open([5, 6])
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((EngineUnreachable, EngineDied)), session.while_alive():
            await asyncio.sleep(120)
        await session.abort()
    assert await anyio.to_thread.run_sync(server.process.wait) == 0
