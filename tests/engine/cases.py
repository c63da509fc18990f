"""Random streams, and what they must answer. Run as a command for many: ``python -m tests.engine.cases --cases 10000``."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio.lowlevel

from stream2llm_rag.engine.engine import Stream2LLMEngine

COMMON: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "block_size": 32}
# 42 blocks of 32 tokens, of which one is vLLM's null block: 1,312 tokens of KV for everybody together.
TIGHT: dict[str, Any] = {"num_gpu_blocks_override": 42, "max_model_len": 1312, "max_num_seqs": 8, "max_num_batched_tokens": 512}
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
CASES_AT_ONCE = 15


class Reference:
    """Stock vLLM with its own Scheduler, in an engine of its own: what it says is right."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._num_requests = 0

    async def answer(self, token_ids: Sequence[int], sampling: dict[str, Any] | None = None) -> list[int]:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        self._num_requests += 1
        params = SamplingParams(**(sampling or GREEDY))
        async for output in self._llm.generate(tokens_input(list(token_ids)), params, f"reference-{self._num_requests}"):
            last = output
        return list(last.outputs[0].token_ids)


@asynccontextmanager
async def stock_reference(model: Path) -> AsyncIterator[Reference]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(str(model), max_model_len=8192, disable_log_stats=True, **COMMON))
    reference = Reference(llm)
    try:
        yield reference
    finally:
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        llm.shutdown()
        del llm, reference._llm


def chaotic_engine(model: Path, *, prefix_caching: bool, policy: str = "tests.engine.rotating:Rotating") -> Stream2LLMEngine:
    """A tight engine in which every fourth step evicts somebody at random first, under each policy in turn."""
    engine = Stream2LLMEngine(model, policy=policy, enable_prefix_caching=prefix_caching, **TIGHT, **COMMON)
    engine._settings = replace(engine._settings, chaos=0.25)
    return engine


def prompt(num_tokens: int, seed: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(5, 2000) for _ in range(num_tokens)]


async def collect(outputs: AsyncIterator[Any]) -> list[int]:
    return [token for output in [o async for o in outputs] for token in output.token_ids]


async def stream(engine: Stream2LLMEngine, dice: random.Random, final: list[int], *, updates: bool) -> list[int]:
    """Stream ``final`` in random pieces, with detours over other prompts when ``updates``; return the answer."""
    async with await engine.open() as session:
        position = 0
        while position < len(final) and dice.random() > 0.1:
            if updates and dice.random() < 0.4:
                common = dice.randint(0, len(final) - 1)
                await session.update(final[:common] + prompt(dice.randint(1, 200), dice.randrange(10**6)))
                position = -1
            elif position < 0:
                position = dice.randint(1, len(final))
                await session.update(final[:position])
            else:
                size = min(dice.choice([1, 7, 31, 32, 33, 100, 400]), len(final) - position)
                await session.append(final[position : position + size])
                position += size
            for _ in range(dice.choice([0, 0, 1, 5, 40])):
                await anyio.lowlevel.checkpoint()
        if position < 0:
            await session.update(final[:1])
            position = 1
        return await collect(await session.finish(final[position:], GREEDY))


def case(engine: Stream2LLMEngine, seed: int) -> tuple[list[int], Awaitable[list[int]]]:
    """One random case: the final prompt, and what gives its answer. Cases share prefixes; one in eight is a plain request."""
    dice = random.Random(seed)
    shared = prompt(dice.choice([0, 0, 64, 200]), seed=1)
    final = shared + prompt(dice.randint(1, 900), seed)
    if dice.random() < 1 / 8:
        return final, collect(engine.generate(final, GREEDY))
    return final, stream(engine, dice, final, updates=dice.random() < 0.5)


async def wrong_seeds(engine: Stream2LLMEngine, reference: Reference, seeds: Sequence[int]) -> list[int]:
    """Run the cases of ``seeds`` at once; return those whose answer is not that of stock vLLM."""
    cases = [case(engine, seed) for seed in seeds]
    answers = await asyncio.gather(*(answer for _, answer in cases))
    return [s for s, (final, _), a in zip(seeds, cases, answers, strict=True) if a != await reference.answer(final)]


async def _main(num_cases: int, first: int) -> list[int]:
    from stream2llm_rag.tiny_model import build_tiny_model

    model, wrong, started = build_tiny_model(), [], time.monotonic()
    async with (
        stock_reference(model) as reference,
        chaotic_engine(model, prefix_caching=True) as cached,
        chaotic_engine(model, prefix_caching=False) as uncached,
    ):
        for start in range(first, first + num_cases, CASES_AT_ONCE):
            seeds = range(start, min(start + CASES_AT_ONCE, first + num_cases))
            wrong += await wrong_seeds(cached if start // CASES_AT_ONCE % 2 else uncached, reference, seeds)
            done = seeds.stop - first
            print(f"{done} of {num_cases} cases, {len(wrong)} wrong, {time.monotonic() - started:.0f} s", flush=True)
        print(cached.stats().cores[0], uncached.stats().cores[0], sep="\n")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    if failed := asyncio.run(_main(arguments.cases, arguments.first_seed)):
        raise SystemExit(f"wrong answers for seeds {failed}; rerun one with --cases {CASES_AT_ONCE} --first-seed SEED")
