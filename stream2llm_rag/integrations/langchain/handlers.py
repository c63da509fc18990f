"""Handlers hear of starts and ends though the answer is cancelled meanwhile, and cannot keep it for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from stream2llm_rag.shielding import run_shielded

T = TypeVar("T")

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0


async def told(work: Awaitable[T]) -> T:
    """Await what handlers do. A cancellation that comes meanwhile is raised behind it, or ten seconds later."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await told_of_the_end(task)
        raise


async def told_of_the_end(work: Awaitable[object]) -> None:
    """Await what handlers do when an answer was cancelled or has failed, which what they raise does not take the place of.

    Those that take more than ten seconds are left.
    """
    await run_shielded(_bounded(asyncio.ensure_future(work)))


async def _bounded(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task], timeout=_TIMEOUT_S)
    if not task.done():
        task.cancel()
        logger.warning("a callback took more than %.0f s after its answer was cancelled or failed, and was left", _TIMEOUT_S)
    elif not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a callback raised after its answer was cancelled or failed", exc_info=error)
