"""What waits on an engine learns of its end at once, whatever it waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream2llm_rag import Append, ContextDelta, Document, StreamingRAG
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.errors import EngineDied, LifecycleError


@pytest.fixture
def engine(model_path: Path) -> FakeEngine:
    from transformers import AutoTokenizer

    return FakeEngine(AutoTokenizer.from_pretrained(model_path))


class Stalls:
    """A retriever that finds one document and then nothing, for ever."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.closed = anyio.Event()

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        try:
            yield Append((Document("Cancel it.", "https://docs.example/1"),))
            self.reached.set()
            await anyio.sleep_forever()
        finally:
            self.closed.set()


async def test_a_wait_ends_when_the_line_is_cut() -> None:
    line = Lifeline()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_soon, line)
        with pytest.raises(EngineDied, match="open a new one") as caught, line.held():
            await anyio.sleep_forever()
    assert isinstance(caught.value.__cause__, OSError)


async def end_soon(line: Lifeline) -> None:
    await anyio.lowlevel.checkpoint()
    line.die(OSError("killed"))


async def test_what_comes_later_is_told_the_first_reason() -> None:
    line = Lifeline()
    line.close()
    line.die()
    with pytest.raises(LifecycleError, match="closed"), line.held():
        pytest.fail("a block on a line that is cut does not run")
    with pytest.raises(LifecycleError):
        line.check()


async def test_a_block_that_ended_before_the_cut_keeps_its_result() -> None:
    line = Lifeline()
    with line.held():
        value = 7
    line.die()
    with Lifeline().held():
        await anyio.lowlevel.checkpoint()  # a cut concerns those on the line alone
    assert value == 7


async def test_a_cancellation_from_outside_stays_one() -> None:
    line = Lifeline()
    with anyio.CancelScope() as scope:
        with line.held():
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        pytest.fail("the cancellation did not get through")
    assert scope.cancelled_caught


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(("end", "error"), [("die", EngineDied), ("close", LifecycleError)])
async def test_an_answer_that_is_still_retrieving_ends_with_its_engine(
    engine: FakeEngine, streaming: bool, end: str, error: type[Exception]
) -> None:
    retriever = Stalls()
    with anyio.fail_after(30):
        async with StreamingRAG(engine, retriever).stream("How?", streaming=streaming) as answer:
            await retriever.reached.wait()
            getattr(engine.lifeline, end)()
            with pytest.raises(error):
                await anext(answer)
    assert retriever.closed.is_set()
    assert not engine.sessions


async def test_a_session_of_a_dead_engine_says_so_at_each_call(engine: FakeEngine) -> None:
    async with await engine.open([5, 6]) as partial, await engine.open([5]) as generating:
        outputs: Any = await generating.finish([7])
        await anext(outputs)
        engine.lifeline.die()
        for call in (partial.append([7]), partial.update([7]), partial.finish([7]), anext(outputs), engine.open()):
            with pytest.raises(EngineDied):
                await call
    assert not engine.sessions
