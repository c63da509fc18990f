"""The thread that starts and ends vLLM's processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import anyio.lowlevel

from stream2llm_rag.shielding import run_shielded


class Starter:
    """A thread that starts vLLM's processes and stays alive as long as they do.

    The kernel ends them when the thread that started them is gone (see :mod:`plugins`), so a pool's thread would not do.
    """

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._job: tuple[Callable[[], Any], Future[Any]] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in the thread and wait for its result, however often the caller is cancelled meanwhile."""
        future: Future[Any] = Future()
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="stream2llm-engine", daemon=True)
                self._thread.start()
            self._job = (function, future)
            self._wake.notify()
        result = await run_shielded(asyncio.wrap_future(future))
        await anyio.lowlevel.checkpoint_if_cancelled()
        return result

    def close(self) -> None:
        """Let the thread end."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._job is not None or self._closed)
                job, self._job = self._job, None
            if job is None:
                return
            self._carry_out(*job)
            del job  # the thread waits on; what it started must not wait with it to be freed

    @staticmethod
    def _carry_out(function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
