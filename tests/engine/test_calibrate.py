"""On the session's engine: the figures are the machine's, what they are of is checked."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest

from stream2llm_rag.engine.calibrate import Measured, calibrating, measure
from stream2llm_rag.engine.cost_model import Direction
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.fits import FitKey
from stream2llm_rag.engine.fitting import errors_of, fit_costs
from stream2llm_rag.errors import EngineStartError, InvalidInputError

from .cases import GREEDY, Reference, collect, prompt


@pytest.fixture(scope="module")
async def measured(engine: Stream2LLMEngine) -> Measured:
    return await measure(engine, seconds=0.5, seed=1, tell=lambda _: None)


async def test_steps_of_many_lengths_and_contexts_are_timed(measured: Measured) -> None:
    steps = measured.timings.steps
    assert len(steps) >= 16
    assert all(1 <= step.num_tokens <= 1024 and step.seconds > 0 for step in steps)
    for before, step in pairwise(steps):
        assert step.context in (0, before.context + before.num_tokens)  # one stream after the other, each without a gap
    assert max(step.context + step.num_tokens for step in steps) <= measured.max_tokens == 8190
    assert len({step.num_tokens for step in steps}) > 8


async def test_copies_of_up_to_the_longest_victim_are_timed_both_ways(measured: Measured) -> None:
    for direction in Direction:
        sizes = {copy.num_blocks for copy in measured.timings.of(direction)}
        assert sizes == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert all(copy.seconds > 0 for copy in measured.timings.copies)


async def test_a_fit_of_it_says_that_longer_takes_longer(measured: Measured) -> None:
    costs = fit_costs(measured.timings)
    assert 0 < costs.step([(64, 0)]) < costs.step([(1024, 0)]) <= costs.step([(1024, 7000)])
    assert 0 < costs.swap_out(1) < costs.swap_out(256)
    assert 0 < costs.swap_in(1) < costs.swap_in(256)
    assert {name: error.num_measurements for name, error in errors_of(costs, measured.timings).items()} == {
        "step": len(measured.timings.steps),
        "swap_out": len(measured.timings.copies) // 2,
        "swap_in": len(measured.timings.copies) // 2,
    }


async def test_the_key_is_that_of_the_running_engine(measured: Measured, engine: Stream2LLMEngine) -> None:
    assert measured.key == FitKey.of(engine._running().vllm_config)
    expected = {"dtype": "float32", "block_size": 32, "tensor_parallel_size": 1, "attention_backend": "CPU_ATTN"}
    assert {name: asdict(measured.key)[name] for name in expected} == expected
    assert measured.key.device


async def test_answers_are_right_after_copies_went_over_the_kv_cache(engine: Stream2LLMEngine, reference: Reference) -> None:
    token_ids = prompt(700, 77)
    expected = await reference.answer(token_ids)
    assert await collect(engine.generate(token_ids, GREEDY)) == expected  # its blocks are in the prefix cache from here on
    await measure(engine, seconds=0, seed=2, tell=lambda _: None)
    assert await collect(engine.generate(token_ids, GREEDY)) == expected


async def test_an_engine_that_was_not_opened_for_it_is_refused(tight_engine: Stream2LLMEngine) -> None:
    with pytest.raises(EngineStartError, match="calibrating"):
        await measure(tight_engine, tell=lambda _: None)
    assert await collect(tight_engine.generate(prompt(50, 1), GREEDY))  # and is none the worse


async def test_an_argument_that_measuring_sets_itself_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="was given policy, which it sets itself"):
        async with calibrating("a-model", policy="lcas"):
            pass
