"""Handlers hear of starts and ends though the answer is cancelled meanwhile, and cannot keep it for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from stream2llm_rag.integrations import crossing
from stream2llm_rag.shielding import run_shielded

T = TypeVar("T")

logger = logging.getLogger(__name__)


async def told(work: Awaitable[T]) -> T:
    """Await what handlers do. A cancellation that comes meanwhile is raised behind it, or ten seconds later."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):
            await told_of_the_end(task)
        raise


async def told_of_the_end(work: Awaitable[object]) -> None:
    """Await what handlers do when an answer was cancelled or has failed. Those that take more than ten seconds are left."""
    task = asyncio.ensure_future(work)
    await run_shielded(asyncio.wait([task], timeout=crossing.CLOSE_TIMEOUT_S))
    if task.done():
        task.result()
    else:
        task.cancel()
        logger.warning("a callback took more than %.0f s to hear of an end, and was left", crossing.CLOSE_TIMEOUT_S)
