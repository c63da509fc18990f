"""Resources that stay open on an event loop until somebody elsewhere ends them."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from stream2llm_rag.errors import LifecycleError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Guest:
    """A task that keeps one resource open until it is told to end: what is entered in a task has to be left in the same one.

    ``start`` and ``end`` are called on the loop; ``opened`` gets what entering gives, or what it raises.
    """

    def __init__(self) -> None:
        self._is_over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, resource: AbstractAsyncContextManager[T], opened: Future[T]) -> None:
        """Begin to open ``resource``."""
        self._task = asyncio.get_running_loop().create_task(self._keep(resource, opened))
        self._task.add_done_callback(lambda _: self._give_up(opened))

    async def end(self) -> None:
        """Close it, and wait for that."""
        self._is_over.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    def _give_up(self, opened: Future[T]) -> None:
        """Let nobody wait for what was cancelled from inside while it opened."""
        if not opened.done():
            opened.set_exception(LifecycleError("opening was cancelled."))

    async def _keep(self, resource: AbstractAsyncContextManager[T], opened: Future[T]) -> None:
        try:
            async with resource as value:
                opened.set_result(value)
                await self._is_over.wait()
        except Exception as error:
            if opened.done():
                logger.exception("%s failed to close", type(resource).__name__)
            else:
                opened.set_exception(error)
