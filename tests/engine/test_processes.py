"""What becomes of vLLM's processes when ours ends, one way or the other; and what a start that cannot succeed says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.errors import EngineStartError, InvalidInputError, LifecycleError

SCRIPT = """
import asyncio, sys
from stream2llm_rag.engine.engine import Stream2LLMEngine

async def main():
    async with Stream2LLMEngine({model!r}, dtype="float32", enforce_eager=True, max_model_len=1024, block_size=32) as engine:
        async with await engine.open([5, 6, 7]) as session:
            print("ready", flush=True)
            try:
                async for _ in await session.finish([8], {{"max_tokens": 1000, "ignore_eos": True}}):
                    pass
                await asyncio.Event().wait()
            finally:
                print("stream ended", flush=True)
    print("engine closed", flush=True)

if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@contextmanager
def running_script(tmp_path: Path, model_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A script that streams, in a process group of its own, as a terminal would run it; and vLLM's processes below it."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(model=str(model_path)))
    with subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
            yield process, children
        finally:
            if process.poll() is None:
                process.kill()


def assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    assert not alive


def test_ctrl_c_ends_streams_and_closes_the_engine_in_order(tmp_path: Path, model_path: Path) -> None:
    with running_script(tmp_path, model_path) as (process, children):
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        output, _ = process.communicate(timeout=200)
        assert output.split("\n") == ["stream ended", "interrupted", ""]
        assert process.returncode == 0
        assert_all_end(children)


def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path, model_path: Path) -> None:
    with running_script(tmp_path, model_path) as (process, children):
        process.kill()
        assert_all_end(children)


def test_a_script_without_the_main_guard_is_told_so_at_once(tmp_path: Path, model_path: Path) -> None:
    path = tmp_path / "unguarded.py"
    path.write_text(SCRIPT.format(model=str(model_path)).replace('if __name__ == "__main__":', "if True:"))
    started = time.monotonic()
    process = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert process.returncode != 0
    message = process.stderr.strip().splitlines()[-1]
    assert 'Put what it does under: if __name__ == "__main__":' in message
    assert str(path) in message
    assert "ready" not in process.stdout
    assert time.monotonic() - started < 60


async def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="no model at"):
        async with Stream2LLMEngine(tmp_path / "nowhere"):
            pass


async def test_a_model_directory_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="could not start"):
        async with Stream2LLMEngine(tmp_path):
            pass


async def test_an_engine_argument_that_vllm_does_not_know(model_path: Path) -> None:
    with pytest.raises(EngineStartError, match="tensor_paralel_size"):
        async with Stream2LLMEngine(model_path, tensor_paralel_size=1):
            pass


async def test_an_engine_is_used_between_open_and_close_and_once(model_path: Path, tmp_path: Path) -> None:
    engine = Stream2LLMEngine(tmp_path)
    with pytest.raises(LifecycleError, match="not opened yet"):
        await engine.open()
    with pytest.raises(EngineStartError):
        await engine.__aenter__()
    with pytest.raises(LifecycleError, match="opened once"):
        await engine.__aenter__()


@pytest.mark.parametrize(
    "options", [{"policy": "luck"}, {"max_sessions": 0}, {"scheduler_cls": "mine"}, {"speculative_config": {"model": "x"}}]
)
def test_settings_that_cannot_be_used(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        Stream2LLMEngine("model", **options)  # type: ignore[arg-type]


def test_the_plugin_does_nothing_outside_an_engine_of_ours() -> None:
    code = """
        import os, multiprocessing
        from stream2llm_rag.engine.plugins import register
        def child():
            before = os.getpgid(0)
            register()
            assert os.getpgid(0) == before
        if __name__ == "__main__":
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start(); process.join()
            raise SystemExit(process.exitcode)
    """
    environment = {name: value for name, value in os.environ.items() if name != "STREAM2LLM_ENGINE"}
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, timeout=60).returncode == 0
