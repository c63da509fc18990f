from __future__ import annotations

import asyncio
import gc

import anyio
import pytest

from stream2llm_rag.shielding import run_shielded


async def test_work_has_its_result_and_its_error() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    assert await run_shielded(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError, match="mine"):
        await run_shielded(fail())


@pytest.mark.parametrize("num_cancellations", [1, 2, 3])
async def test_work_is_done_to_its_end_however_often_its_task_is_cancelled(num_cancellations: int) -> None:
    gate, is_done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        is_done.set()

    task = asyncio.create_task(run_shielded(work()))
    for _ in range(num_cancellations):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_done.is_set()


async def test_work_is_done_to_its_end_in_a_scope_that_is_cancelled() -> None:
    is_done = False
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await run_shielded(asyncio.sleep(0, "done")) == "done"
        is_done = True
        await anyio.lowlevel.checkpoint()
        raise AssertionError("not cancelled behind it")
    assert is_done


async def test_a_failure_behind_a_cancellation_is_its_cause() -> None:
    gate = asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raise KeyError("mine")

    task = asyncio.create_task(run_shielded(fail()))
    await asyncio.sleep(0)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert isinstance(raised.value.__cause__, KeyError)
    gc.collect()  # an error that nobody looked at would be told of now
