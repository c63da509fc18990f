"""Swap on the real engine: answers are those of stock vLLM, whatever host memory there is and whoever decides."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.feedback import EngineCounters
from stream2llm_rag.engine.swap.choice import RANDOM
from stream2llm_rag.errors import InvalidInputError

from .cases import GREEDY, Reference, collect, prompt, stream, wrong_seeds
from .conftest import computed, quiet
from .swapping import NUM_HOST_BLOCKS, Regime, rule, swapping_engine

BATCH = 10


@pytest.fixture(scope="session")
async def swapping(model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    async with swapping_engine(model_path) as engine:
        yield engine


async def counted(engine: Stream2LLMEngine) -> EngineCounters:
    await quiet(engine)
    return EngineCounters(**asdict(engine.stats().cores[0]))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"host_kv_gib": -1}, "host_kv_gib must be 0 or more, got -1"),
        ({"host_kv_gib": float("nan")}, "host_kv_gib must be 0 or more, got nan"),
        ({"preempt": "sometimes"}, "no way to preempt called 'sometimes'"),
        ({"host_kv_gib": 1, "kv_transfer_config": {"kv_connector": "NixlConnector"}}, "Leave out kv_transfer_config="),
        ({"kv_offloading_size": 1}, "kv_offloading_size= brings a KV connector that cannot stream"),
        ({"host_kv_gib": 1, "role": "prefill", "kv_offloading_size": 1}, "host_kv_gib= keeps KV"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        Stream2LLMEngine("model", **arguments)


@pytest.mark.parametrize("preempt", [Preemption.SWAP, RANDOM])
@pytest.mark.parametrize("num_slots", [0, 1, 6, NUM_HOST_BLOCKS])
async def test_answers_are_those_of_stock(
    swapping: Stream2LLMEngine, reference: Reference, num_slots: int, preempt: str
) -> None:
    await rule(swapping, Regime(num_slots, preempt))
    before = await counted(swapping)
    first = 1000 + 10 * num_slots + 5000 * (preempt == RANDOM)
    assert await wrong_seeds(swapping, reference, range(first, first + BATCH)) == []
    after = await counted(swapping)
    assert after.num_swap_evictions > before.num_swap_evictions
    if num_slots in (0, NUM_HOST_BLOCKS):  # with a few, and at random, it may happen that nothing comes back
        assert (after.num_blocks_in > before.num_blocks_in) == (num_slots > 0)
    assert after.num_used_host_slots == 0


async def test_slots_that_are_mixed_up_show_in_the_answers(swapping: Stream2LLMEngine, reference: Reference) -> None:
    await rule(swapping, Regime(rotates=True))
    assert await wrong_seeds(swapping, reference, range(1000, 1000 + BATCH))


@pytest.mark.parametrize("preempt", [Preemption.SWAP, Preemption.RECOMPUTE])
async def test_with_room_for_all_nothing_is_computed_twice(swapping: Stream2LLMEngine, preempt: Preemption) -> None:
    await rule(swapping, Regime(preempt=preempt))
    before = await counted(swapping)
    finals = [prompt(600 + 37 * i, 9000 + 100 * (preempt is Preemption.SWAP) + i) for i in range(6)]
    sessions = []

    async def run(final: list[int], seed: int) -> None:
        dice = random.Random(seed)
        async with await swapping.open() as session:
            sessions.append(session)
            for start in range(0, len(final), 90):
                await session.append(final[start : start + 90])
                await anyio.lowlevel.checkpoint() if dice.random() < 0.5 else await computed(session, 1)
            await collect(await session.finish([], GREEDY))

    await asyncio.gather(*(run(final, seed) for seed, final in enumerate(finals)))
    assert (await counted(swapping)).num_evictions > before.num_evictions
    num_computed = sum(session.stats.computed_tokens for session in sessions)
    assert (num_computed == sum(map(len, finals))) == (preempt is Preemption.SWAP)


async def test_an_abort_gives_host_memory_back(swapping: Stream2LLMEngine) -> None:
    await rule(swapping, Regime())
    dice = random.Random(4)

    async def run(seed: int) -> None:
        with anyio.move_on_after(dice.random() * 2):
            await stream(swapping, random.Random(seed), prompt(900, seed), updates=True)

    await asyncio.gather(*(run(seed) for seed in range(BATCH)))
    after = await counted(swapping)
    assert after.num_blocks_out > 0
    assert (after.num_used_host_slots, after.num_partial, after.num_used_blocks) == (0, 0, 0)
