"""An engine closes to the end, whatever comes in between. vLLM's processes are stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

from stream2llm_rag.engine.disaggregated import DisaggregatedEngine
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.session import OutputDelta, Session


class Llm:
    """Stands for vLLM's engine."""

    errored = False

    def __init__(self) -> None:
        self.output_handler = asyncio.create_task(anyio.sleep_forever())
        self.was_shut_down = False

    def shutdown(self, timeout: float) -> None:
        self.was_shut_down = True


class Wire:
    """Takes a few turns of the event loop for whatever it is asked."""

    max_model_len, vocab_size = 1000, 1000

    def __init__(self) -> None:
        self.lifeline = Lifeline()
        self.num_dropped = 0
        self.num_generating = 0
        self.fails = False

    async def drop(self, session: Session, submitted: bool) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.num_dropped += 1
        if self.fails:
            raise OSError("mine")

    async def generate(self, prompt: Any, sampling: Any) -> AsyncIterator[OutputDelta]:
        self.num_generating += 1
        try:
            while True:
                yield OutputDelta("a", (5,))
        finally:
            self.num_generating -= 1


def opened(engine: Stream2LLMEngine, wire: Wire) -> Llm:
    """Make ``engine`` believe that it was started."""
    llm: Any = Llm()
    engine._llm, engine._wire, engine._state = llm, wire, "open"  # type: ignore[assignment]
    for _ in range(2):
        engine._sessions.add(Session(wire, on_close=engine._sessions.discard))  # type: ignore[arg-type]
    return llm


@pytest.mark.parametrize("num_cancellations", [1, 2])
@pytest.mark.parametrize("num_steps", range(12))
async def test_an_engine_whose_closing_is_cancelled_ends_its_sessions_and_its_processes(
    num_steps: int, num_cancellations: int
) -> None:
    engine, wire = Stream2LLMEngine("model"), Wire()
    llm = opened(engine, wire)
    task = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0)
    for _ in range(num_steps):
        await asyncio.sleep(0)
    for _ in range(num_cancellations):
        task.cancel()
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await task
    assert llm.was_shut_down
    assert wire.num_dropped == 2
    assert engine.stats().num_sessions == 0


async def test_an_engine_whose_session_fails_to_end_ends_its_processes() -> None:
    engine, wire = Stream2LLMEngine("model"), Wire()
    llm, wire.fails = opened(engine, wire), True
    with pytest.raises(OSError, match="mine"):
        await engine.aclose()
    assert llm.was_shut_down


def test_an_engine_ends_its_processes_when_its_event_loop_ends() -> None:
    """As after a second Ctrl-C: every task of the loop is cancelled, those that close the engine too."""
    engine, wire, llms = Stream2LLMEngine("model"), Wire(), list[Llm]()

    async def close() -> None:
        await engine.aclose()

    async def main() -> None:
        llms.append(opened(engine, wire))
        main.closing = asyncio.create_task(close())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert llms[0].was_shut_down


async def test_a_pair_of_engines_whose_closing_is_cancelled_closes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream2llm_rag.engine.engine.connector_fields", lambda role, given: {})
    engines = [Stream2LLMEngine("model", role=role) for role in ("prefill", "decode")]
    pair = DisaggregatedEngine(*engines)
    llms = []
    for engine in engines:
        llms.append(opened(engine, Wire()))
        pair._engines.push_async_callback(engine.aclose)
    pair._sessions.add(Session(Wire(), on_close=pair._sessions.discard))  # type: ignore[arg-type]
    task = asyncio.create_task(pair.aclose())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(llm.was_shut_down for llm in llms)


async def test_a_plain_request_that_is_closed_has_ended() -> None:
    engine, wire = Stream2LLMEngine("model"), Wire()
    opened(engine, wire)
    outputs: Any = engine.generate([5, 6])
    await anext(outputs)
    assert wire.num_generating == 1
    await outputs.aclose()
    assert wire.num_generating == 0
    await engine.aclose()
