from __future__ import annotations

import asyncio
import threading

import anyio
import pytest

from stream2llm_rag.engine.starter import Starter


async def test_a_job_of_the_starter_is_waited_for_however_often_the_caller_is_cancelled() -> None:
    starter, started, go_on, done = Starter(), threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        go_on.wait(30)
        done.set()

    async def release() -> None:
        await anyio.to_thread.run_sync(started.wait)
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        go_on.set()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(release)
            await starter.run(job)
        assert scope.cancelled_caught
        assert done.is_set()
    starter.close()


async def test_a_job_of_the_starter_is_waited_for_however_often_its_task_is_cancelled() -> None:
    """Its thread must outlive that: with it vLLM's processes would go."""
    starter, started, go_on = Starter(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        go_on.wait(30)

    task = asyncio.create_task(starter.run(job))
    await anyio.to_thread.run_sync(started.wait)
    for _ in range(2):
        task.cancel()
        await anyio.wait_all_tasks_blocked()
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    with anyio.fail_after(30):
        assert await starter.run(lambda: 7) == 7
    starter.close()
