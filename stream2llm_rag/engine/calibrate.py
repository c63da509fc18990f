"""Measures what steps and copies take, on a running engine of this machine.

Steps are timed by the engine core itself, as it reports them: a stream grows by pieces of random lengths, each computed in a
step of its own behind all that came before, so that one stream gives many pairs of length and context. Copies are timed in the
workers, by the code that swap uses, on the engine's own KV cache.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from stream2llm_rag.engine.cost_model import Direction
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.fits import FitKey
from stream2llm_rag.engine.fitting import MIN_STEPS, CopyTiming, StepTiming, Timings
from stream2llm_rag.errors import EngineStartError, InvalidInputError

WORKER_EXTENSION = "stream2llm_rag.engine.copy_timer.CopyTimer"
"""To be given to an engine as ``worker_extension_cls``."""

DEFAULT_SECONDS = 30.0

_MIN_PIECE, _MAX_PIECE = 16, 8192  # tokens
_MAX_STREAM = 65_536
_NUM_COPY_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Measured:
    """``timings`` of the model and machine that ``key`` names; streams had up to ``max_tokens``."""

    key: FitKey
    timings: Timings
    max_tokens: int


@asynccontextmanager
async def calibrating(model: str | Path, **engine_args: Any) -> AsyncIterator[Stream2LLMEngine]:
    """An engine that :func:`measure` can measure. First come, first served: that policy computes a stream in full steps.

    Raises :class:`InvalidInputError` for engine arguments that measuring needs for itself.
    """
    own: dict[str, Any] = {"policy": "fcfs", "worker_extension_cls": WORKER_EXTENSION}
    if taken := own.keys() & engine_args.keys():
        raise InvalidInputError(f"calibrate was given {', '.join(sorted(taken))}, which it sets itself. Leave it out.")
    async with Stream2LLMEngine(model, **own, **engine_args) as engine:
        yield engine


async def measure(
    engine: Stream2LLMEngine, *, seconds: float = DEFAULT_SECONDS, seed: int | None = None, tell: Callable[[str], None] = print
) -> Measured:
    """Time steps for about ``seconds``, and then copies, on an engine that nobody else uses.

    With a ``seed`` the lengths are those of last time. ``tell`` is called with what is under way. Raises
    :class:`EngineStartError` for an engine that was not opened by :func:`calibrating`.
    """
    dice = random.Random(seed)  # noqa: S311 - lengths, no secrets
    described = await _describe(engine)
    key = FitKey.from_dict(described["key"])
    max_tokens = min(engine.max_model_len - 2, (described["num_blocks"] - 2) * key.block_size, _MAX_STREAM)
    tell("Warming up")
    await _time_stream(engine, _pieces(max_tokens, dice), dice)
    tell("Timing steps")
    steps: list[StepTiming] = []
    ends_at = time.monotonic() + seconds
    while len(steps) < MIN_STEPS or time.monotonic() < ends_at:
        length = round(math.exp(dice.uniform(math.log(max_tokens / 16), math.log(max_tokens))))
        steps += await _time_stream(engine, _pieces(max(_MIN_PIECE, length), dice), dice)
    tell("Timing copies")
    copies = await _time_copies(engine, -(-max_tokens // key.block_size), dice)
    return Measured(key, Timings(steps, copies), max_tokens)


async def _describe(engine: Stream2LLMEngine) -> dict[str, Any]:
    try:
        described: list[dict[str, Any]] = await engine.call_workers("s2l_describe")
    except Exception as error:
        raise EngineStartError(
            f"the engine's workers cannot be measured: {error}. Open it by calibrating(), without worker_extension_cls."
        ) from error
    return described[0]


async def _time_copies(engine: Stream2LLMEngine, max_blocks: int, dice: random.Random) -> list[CopyTiming]:
    """Under tensor parallelism of each copy the slowest rank, for which the others wait."""
    ranks: list[list[tuple[str, int, float]]] = await engine.call_workers(
        "s2l_time_copies", max_blocks, _NUM_COPY_ROUNDS, dice.getrandbits(32)
    )
    await engine.reset_prefix_cache()
    return [
        CopyTiming(Direction(same[0][0]), same[0][1], max(seconds for _, _, seconds in same))
        for same in zip(*ranks, strict=True)
    ]


async def _time_stream(engine: Stream2LLMEngine, pieces: Sequence[int], dice: random.Random) -> list[StepTiming]:
    """The steps of one stream that grows by ``pieces``."""
    watch = _Watch()
    async with await engine.open(on_record=watch.take) as session:
        with session.while_alive():
            for num_tokens in pieces:
                await session.append([dice.randrange(5, engine.vocab_size) for _ in range(num_tokens)])
                await watch.computed(session.num_tokens - 1)  # the last token is for the answer
    return watch.steps


def _pieces(num_tokens: int, dice: random.Random) -> list[int]:
    """Lengths that add up to ``num_tokens``: as many short ones as long ones, on a logarithmic scale."""
    found: list[int] = []
    while (left := num_tokens - sum(found)) > 0:
        piece = round(math.exp(dice.uniform(math.log(_MIN_PIECE), math.log(_MAX_PIECE))))
        found.append(min(left, piece))
    return found


class _Watch:
    """Keeps the steps of one stream, and wakes who waits for them."""

    def __init__(self) -> None:
        self.steps: list[StepTiming] = []
        self._num_computed = 0
        self._last_ended_s = 0.0
        self._changed = anyio.Event()

    def take(self, record: StepRecord) -> None:
        """Note a record of the core. Under asynchronous scheduling a step begins before the last one has ended."""
        if record.kind is StepKind.COMPUTED:
            seconds = record.ended_s - max(record.started_s, self._last_ended_s)
            self.steps.append(StepTiming(record.num_tokens, self._num_computed, seconds))
            self._last_ended_s = record.ended_s
        if record.kind in (StepKind.COMPUTED, StepKind.RESUMED):
            self._num_computed += record.num_tokens
            self._changed.set()

    async def computed(self, num_tokens: int) -> None:
        """Wait until that many tokens have been computed."""
        while self._num_computed < num_tokens:
            self._changed = anyio.Event()
            await self._changed.wait()
