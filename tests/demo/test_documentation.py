from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from stream2llm_rag.demo import TOPICS, DocumentationServer, documentation
from stream2llm_rag.errors import LifecycleError, RetrievalError


async def get(url: str) -> str:
    async with aiohttp.ClientSession() as client, client.get(url) as response:
        return await response.text()


async def test_it_serves_the_documentation_of_the_standard_library_and_of_nothing_else() -> None:
    async with DocumentationServer() as server:
        assert server.host.startswith("127.0.0.1:")
        assert server.url == f"http://{server.host}/"
        assert "gather" in await get(server.page("asyncio.tasks"))
        index = await get(server.url)
    assert "asyncio" in index
    assert "pytest" not in index


async def test_two_servers_run_side_by_side() -> None:
    async with DocumentationServer() as one, DocumentationServer() as other:
        assert one.host != other.host
        assert "heappush" in await get(other.page("heapq"))


async def test_after_the_block_nothing_is_left() -> None:
    async with DocumentationServer() as server:
        page, process = server.page("heapq"), server._process
    assert process is not None
    assert process.returncode == 0
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(page)
    with pytest.raises(LifecycleError, match="async with DocumentationServer"):
        _ = server.url


async def test_a_block_that_fails_ends_it_too() -> None:
    server = DocumentationServer()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with server:
            process = server._process
            raise ZeroDivisionError
    assert process is not None
    assert process.returncode == 0


async def test_a_server_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "broken.py"
    script.write_text("print('no address')")
    monkeypatch.setattr(documentation, "_SCRIPT", script)
    with pytest.raises(RetrievalError, match=r"did not start.*no address"):
        async with DocumentationServer():
            pass


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "silent.py"
    script.write_text("import sys; sys.stdin.read()")
    monkeypatch.setattr(documentation, "_SCRIPT", script)
    monkeypatch.setattr(documentation, "_START_TIMEOUT_S", 0.05)
    async with asyncio.timeout(60):
        with pytest.raises(RetrievalError, match="did not start"):
            async with DocumentationServer():
                pass


async def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text("import signal\nprint('http://127.0.0.1:1/', flush=True)\nwhile True: signal.pause()")
    monkeypatch.setattr(documentation, "_SCRIPT", script)
    monkeypatch.setattr(documentation, "_STOP_TIMEOUT_S", 0.05)
    async with asyncio.timeout(60), DocumentationServer() as server:
        process = server._process
    assert process is not None
    assert process.returncode == -signal.SIGKILL


PARENT = """
import asyncio
from stream2llm_rag.demo import DocumentationServer

async def main():
    async with DocumentationServer() as server:
        print(server._process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([server], [], [], 0)[0]
            parent.kill()
            assert select.select([server], [], [], 60)[0], "the server is still running"
        finally:
            os.close(server)


def test_there_are_topics_for_many_questions_at_once() -> None:
    assert len({topic.question for topic in TOPICS}) == len({topic.module for topic in TOPICS}) == len(TOPICS) >= 16
