"""Streams random prompts under pressure, and compares the answers with those of stock vLLM (:mod:`equality`)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from stream2llm_rag.bench.equality import Answer, Verdict, judge
from stream2llm_rag.bench.hosts import open_targets
from stream2llm_rag.bench.observer import Observer
from stream2llm_rag.bench.pace import Pace, StallWatch
from stream2llm_rag.bench.scaling import Scale, scale_trace
from stream2llm_rag.bench.script import Script, write_scripts
from stream2llm_rag.bench.sighting import Sighting
from stream2llm_rag.bench.steps import StepLog
from stream2llm_rag.bench.stock import StockEngine
from stream2llm_rag.bench.targets import Streaming
from stream2llm_rag.bench.ways import Way
from stream2llm_rag.simulation.workloads import anns, crawler

_NUM_LOGPROBS = 10


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """``num_prompts`` of each workload, ``num_output_tokens`` each; tokens scaled by ``tokens``, times by ``time``.

    ``num_blocks`` should be few, so that streams are evicted and come back; ``token_budgets`` are two sizes of steps, of which
    stock vLLM's second shows how much rounding does.
    """

    num_prompts: int
    num_output_tokens: int
    tokens: float
    time: float
    num_blocks: int
    token_budgets: tuple[int, int]
    vocabulary: range


@dataclass(frozen=True, slots=True)
class Check:
    """``streamed`` is the finding; ``control`` judges answers to prompts of which one token is another, and must find fault.

    ``num_evictions`` are those of the streams: without any, the check saw no pressure.
    """

    streamed: Verdict
    control: Verdict
    num_evictions: int

    @property
    def holds(self) -> bool:
        """All streamed answers are stock vLLM's, near-ties aside, and most of the control's are not."""
        return self.streamed.num_wrong == 0 and 2 * self.control.num_wrong > self.control.num_answers


async def check(way: Way, model: Path, engine_args: Mapping[str, Any], settings: CheckSettings) -> Check:
    """Run it, with one engine after the other: stock vLLM with either size of steps, then ours."""
    trace = [
        query
        for workload in (crawler, anns)
        for query in workload(settings.num_prompts, 8.0, num_output_tokens=settings.num_output_tokens)
    ]
    scripts = write_scripts(scale_trace(tuple(trace), Scale(settings.tokens, settings.time)), settings.vocabulary)
    prompts = [script.final_prompt for script in scripts]
    usual, other = settings.token_budgets
    async with StockEngine(model, **{**engine_args, "max_num_batched_tokens": usual}) as stock:
        references = await _answers(stock, prompts, settings)
        altered = await _answers(stock, _altered(prompts, settings.vocabulary), settings)
    async with StockEngine(model, **{**engine_args, "max_num_batched_tokens": other}) as stock:
        others = await _answers(stock, prompts, settings)
    ours = {**engine_args, "max_num_batched_tokens": usual, "num_gpu_blocks_override": settings.num_blocks}
    async with open_targets(model, [way], ours) as [target]:
        assert isinstance(target, Streaming)
        streamed, num_evictions = await _streamed(target, scripts)
    return Check(judge(streamed, references, others), judge(altered, references, others), num_evictions)


def _altered(prompts: Iterable[Sequence[int]], vocabulary: range) -> list[list[int]]:
    """Each prompt with another token at one place."""
    dice = random.Random(0)  # noqa: S311 - a place, not a secret
    found = [list(prompt) for prompt in prompts]
    for prompt in found:
        place = dice.randrange(len(prompt))
        prompt[place] = vocabulary.start + (prompt[place] + 1 - vocabulary.start) % len(vocabulary)
    return found


async def _answers(stock: StockEngine, prompts: Sequence[list[int]], settings: CheckSettings) -> list[Answer]:
    """Of all prompts, asked at once."""
    found: dict[int, Answer] = {}

    async def ask(index: int) -> None:
        outputs = stock.outputs(f"check-{index}", prompts[index], settings.num_output_tokens, _NUM_LOGPROBS)
        found[index] = await _collect(outputs)

    async with anyio.create_task_group() as group:
        for index in range(len(prompts)):
            group.start_soon(ask, index)
    return [found[index] for index in range(len(prompts))]


async def _streamed(target: Streaming, scripts: Sequence[Script]) -> tuple[list[Answer], int]:
    """The answers to all scripts, said at once, and how many evictions there were."""
    pace, watch, log = Pace(), StallWatch(60.0), StepLog()
    observers = [Observer(Sighting(script.query, pace.started_s), pace, watch, log) for script in scripts]
    found: dict[int, Answer] = {}

    async def ask(index: int) -> None:
        found[index] = await _collect(target.outputs(scripts[index], pace, observers[index], _NUM_LOGPROBS))

    async with anyio.create_task_group() as group:
        for index in range(len(scripts)):
            group.start_soon(ask, index)
    num_evictions = sum(observer.sighting.record().num_evictions for observer in observers)
    return [found[index] for index in range(len(scripts))], num_evictions


async def _collect(outputs: Any) -> Answer:
    token_ids: list[int] = []
    logprobs: list[dict[int, float]] = []
    async with aclosing(outputs):
        async for output in outputs:
            token_ids += output.token_ids
            logprobs += [{token: value.logprob for token, value in one.items()} for one in output.logprobs or ()]
    return Answer(tuple(token_ids), tuple(logprobs))
