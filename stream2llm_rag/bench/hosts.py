"""The engines of a comparison, each a process tree of its own, all open at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from stream2llm_rag.bench.targets import KINDS, Target
from stream2llm_rag.bench.ways import Way
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.errors import MissingExtraError

_MAX_SESSIONS = 65536  # a benchmark keeps as many streams open as its trace has at once


@asynccontextmanager
async def open_targets(
    model: str | Path, ways: Iterable[Way], engine_args: Mapping[str, Any], on_start: Callable[[Way], None] = lambda way: None
) -> AsyncIterator[list[Target]]:
    """Start the engines that ``ways`` need, one after the other, with vLLM's arguments ``engine_args``.

    The ways of stock vLLM differ in what is sent, and share an engine: it learns nothing from one round for the next. Each of
    ours has its own. ``on_start`` is told of the first way of each engine before that starts. Raises
    :class:`EngineStartError` where one does not.
    """
    async with AsyncExitStack() as stack:
        targets: list[Target] = []
        stock: Any = None
        for way in ways:
            engine = stock if way.policy is None else None
            if engine is None:
                on_start(way)
                engine = await stack.enter_async_context(_engine(way, model, engine_args))
            if way.policy is None:
                stock = engine
            targets.append(KINDS[way.kind](way, engine))
        yield targets


def _engine(way: Way, model: str | Path, engine_args: Mapping[str, Any]) -> AbstractAsyncContextManager[Any]:
    if way.policy is not None:
        return Stream2LLMEngine(model, policy=way.policy, max_sessions=_MAX_SESSIONS, **engine_args)
    try:
        from stream2llm_rag.bench.stock import StockEngine
    except ImportError as error:
        raise MissingExtraError("vLLM", "vllm") from error
    return StockEngine(model, **engine_args)
