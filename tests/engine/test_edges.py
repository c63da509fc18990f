"""What no stranger, no dead process and no unsuitable model may do to an engine, or to whoever waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from stream2llm_rag import Append, ContextDelta, Document, StreamingRAG
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.session import Session
from stream2llm_rag.errors import EngineDied

from .conftest import COMMON, GREEDY, collect, computed

LONG: dict[str, Any] = {**GREEDY, "max_tokens": 900}


class Stalls:
    """A retriever that finds one document and then nothing, for ever."""

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        yield Append((Document("Cancel it.", "https://docs.example/1"),))
        await anyio.sleep_forever()


class TestAProcessOfTheEngineIsKilled:
    @pytest.mark.parametrize("victim", ["EngineCore", "Worker"])  # the second start shows that a new engine takes its place
    async def test_every_stream_is_told_at_once_and_the_engine_closes(self, model_path: Path, victim: str) -> None:
        before = vllm_processes()
        async with Stream2LLMEngine(model_path, max_model_len=1024, **COMMON) as engine:
            processes = vllm_processes() - before
            (doomed,) = (process for process in processes if victim in " ".join(process.cmdline()))
            ends: dict[str, Exception] = {}
            with anyio.fail_after(60):
                async with anyio.create_task_group() as streams:
                    partial = await engine.open([5] * 100)
                    finished, generating = await engine.open([6] * 100), await engine.open([7] * 100)
                    answer, unread = await generating.finish([8], LONG), await finished.finish([8], LONG)
                    await anext(answer)
                    await computed(partial, 99)
                    waits: dict[str, Callable[[], Awaitable[object]]] = {
                        "retrieving": lambda: StreamingRAG(engine, Stalls()).answer("How?"),
                        "retrieving the usual way": lambda: StreamingRAG(engine, Stalls()).answer("How?", streaming=False),
                        "partial": lambda: wait(partial),
                        "generating": lambda: collect(answer),
                        "plain": lambda: collect(engine.generate([9] * 100, LONG)),
                    }
                    for name, stream in waits.items():
                        streams.start_soon(note_end, stream, name, ends)
                    while engine.stats().num_sessions < 5:  # both that retrieve have opened theirs
                        await anyio.lowlevel.checkpoint()
                    doomed.kill()
            assert {name: type(end) for name, end in ends.items()} == dict.fromkeys(waits, EngineDied)
            for call in (partial.append([5]), anext(unread), engine.open(), engine.reset_prefix_cache()):
                with pytest.raises(EngineDied, match="open a new one"), anyio.fail_after(5):
                    await call
            with anyio.fail_after(30):
                await engine.aclose()
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive
        assert engine.stats().num_sessions == 0


def vllm_processes() -> set[psutil.Process]:
    return {child for child in psutil.Process().children(recursive=True) if "VLLM::" in " ".join(child.cmdline())}


async def wait(session: Session) -> None:
    with session.while_alive():
        await anyio.sleep_forever()


async def note_end(stream: Callable[[], Awaitable[object]], name: str, ends: dict[str, Exception]) -> None:
    try:
        await stream()
    except Exception as error:
        ends[name] = error
