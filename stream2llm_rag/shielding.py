"""Work that is done to its end, though whoever waits for it is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def run_shielded(work: Awaitable[T]) -> T:
    """Await ``work`` to its end; a cancellation that comes meanwhile is raised behind it.

    A shield of anyio's holds off its own cancel scopes, but not ``Task.cancel()``, which ``asyncio.timeout``, ``wait_for``,
    ``TaskGroup`` and most programs use (https://anyio.readthedocs.io/en/stable/cancellation.html). So the work is a task of its
    own, which nobody else knows of.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
