"""A prefill and a decode engine on one machine. Run as a command: ``python -m tests.engine.disaggregated --cases 100``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import psutil

from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.disaggregated import DisaggregatedEngine
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.feedback import EngineCounters
from stream2llm_rag.engine.handover import HandoverWire
from stream2llm_rag.engine.session import Session
from stream2llm_rag.errors import EngineDied

from .cases import CASES_AT_ONCE, COMMON, GREEDY, TIGHT, Reference, case, collect, prompt, stock_reference, wrong_seeds
from .conftest import computed

SEEDS = itertools.count(10**6)  # no prompt twice: the prefill engine would find it in its prefix cache
# vLLM binds each engine's threads to cores of its own; two engines on two cores would then wait for each other.
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1"}
SWAPPING: dict[str, Any] = {**TIGHT, "host_kv_gib": 0.5, "preempt": Preemption.SWAP}
"""So small a pool that streams push each other out, with host memory for all that they lose."""


@contextmanager
def shared_cores() -> Iterator[None]:
    """Engines started inside share the machine's cores."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@asynccontextmanager
async def pair(
    model: Path, *, chaos: float = 0.0, prefill: Mapping[str, Any] = {}, decode: Mapping[str, Any] = {}
) -> AsyncIterator[DisaggregatedEngine]:
    """Two engines, which evict at random. The second has no prefix cache: all its KV is received or computed."""
    args = {"max_model_len": 4096, "max_num_batched_tokens": 512, "num_gpu_blocks_override": 1500, **COMMON}
    first = Stream2LLMEngine(model, role="prefill", **{**args, **prefill})
    second = Stream2LLMEngine(model, role="decode", enable_prefix_caching=False, **{**args, **decode})
    for engine in (first, second):
        engine._settings = replace(engine._settings, chaos=chaos)
    with shared_cores():
        async with DisaggregatedEngine(first, second) as engine:
            yield engine


class Watched:
    """An engine that remembers its sessions, and tells when some of them have been opened."""

    def __init__(self, engine: Stream2LLMEngine | DisaggregatedEngine, *, wait_for: int = 0) -> None:
        self._engine = engine
        self._wait_for = wait_for
        self.generate = engine.generate
        self.sessions: list[Session] = []
        self.are_open = anyio.Event()

    async def open(self, *args: Any, **kwargs: Any) -> Session:
        session = await self._engine.open(*args, **kwargs)
        self.sessions.append(session)
        if len(self.sessions) >= self._wait_for:
            self.are_open.set()
        return session

    def not_handed_over(self) -> list[str]:
        """Of each session whose prompt did not come whole from the prefill engine: why, and how much came."""
        return [
            f"{session.stats.received_tokens} of {session.num_tokens}: {session.stats.handover_error}"
            for session in self.sessions
            if session.stats.handover_error is not None or session.stats.received_tokens != session.num_tokens
        ]


class TimedWire(HandoverWire):
    """Notes when the decode engine's turn came."""

    prefilled_at: float

    async def _offer(self, *args: Any) -> Mapping[str, Any] | None:
        offer = await super()._offer(*args)
        self.prefilled_at = time.monotonic()
        return offer


class WithholdingWire(TimedWire):
    """Never tells the decode engine where the KV lies."""

    async def _offer(self, session: Session, *args: Any) -> None:
        await super()._offer(session, *args)
        session.stats.handover_error = "withheld"


def processes_of(engine: Stream2LLMEngine) -> list[psutil.Process]:
    """Its core and its worker."""
    assert engine._llm is not None
    cores = [psutil.Process(core.pid) for core in engine._llm.engine_core.resources.engine_manager.processes]
    return [*cores, *(worker for core in cores for worker in core.children(recursive=True))]


def kill(engine: Stream2LLMEngine) -> None:
    """End its processes in the middle of whatever they do."""
    for process in processes_of(engine):
        process.kill()


async def wrong_with_a_loss(
    engine: DisaggregatedEngine, lost: Stream2LLMEngine, reference: Reference, seeds: Sequence[int]
) -> tuple[list[int], list[str], int]:
    """Kill the engine ``lost`` while the cases of ``seeds`` run.

    Returns those whose answer is wrong, those that ended with another error than :class:`EngineDied`, and how many did with it.
    """
    watched = Watched(engine, wait_for=len(seeds) // 2)
    cases = [case(watched, seed) for seed in seeds]  # type: ignore[arg-type]  # has what a case needs of an engine

    async def end_engine() -> None:
        await watched.are_open.wait()
        kill(lost)

    async with anyio.create_task_group() as killing:
        killing.start_soon(end_engine)
        answers = await asyncio.gather(*(answer for _, answer in cases), return_exceptions=True)
    wrong, errors, num_died = [], [], 0
    for seed, (final, _), answer in zip(seeds, cases, answers, strict=True):
        if isinstance(answer, EngineDied):
            num_died += 1
        elif isinstance(answer, BaseException):
            errors.append(f"{seed}: {answer!r}")
        elif answer != await reference.answer(final):
            wrong.append(seed)
    return wrong, errors, num_died


async def wrong_long_answers(engine: DisaggregatedEngine, reference: Reference, seeds: Sequence[int]) -> list[int]:
    """Answers so long that a tight decode engine preempts some; returns the seeds of those that are not stock vLLM's."""
    sampling = {**GREEDY, "max_tokens": 300}

    async def answer(final: list[int]) -> list[int]:
        async with await engine.open(final[:200]) as session:
            return await collect(await session.finish(final[200:], sampling))

    finals = [prompt(300, seed) for seed in seeds]
    answers = await asyncio.gather(*map(answer, finals))
    return [s for s, final, a in zip(seeds, finals, answers, strict=True) if a != await reference.answer(final, sampling)]


def losses(core: EngineCounters) -> str:
    """What an engine core took from requests, and what of that went to host memory and came back."""
    taken = f"{core.num_evictions} evictions, {core.num_preemptions} preemptions, {core.num_swap_evictions} to host memory"
    return f"{taken}, {core.num_blocks_out} blocks out, {core.num_blocks_in} in"


async def ttfts(engine: DisaggregatedEngine, wire: type[TimedWire], num_tokens: int, num_runs: int) -> tuple[float, float]:
    """Median seconds to the first token of streamed prompts: from the finish, and from when the decode engine was told."""
    engine._wire = timed = wire(engine.prefill.wire, engine.decode.wire)
    totals, decoding = [], []
    for _ in range(num_runs + 1):  # the first one shakes hands
        tokens = prompt(num_tokens, seed=next(SEEDS))
        async with await engine.open(tokens[: num_tokens // 2]) as session:
            await session.append(tokens[num_tokens // 2 : -32])
            await computed(session, num_tokens - 33)
            finished_at = time.monotonic()
            outputs = await session.finish(tokens[-32:], GREEDY)
            await anext(outputs)
            totals.append(time.monotonic() - finished_at)
            decoding.append(time.monotonic() - timed.prefilled_at)
            await collect(outputs)
    return statistics.median(totals[1:]), statistics.median(decoding[1:])


async def run_cases(model: Path, num_cases: int, first: int, arguments: Mapping[str, Any]) -> bool:
    """Random cases, and the death of either engine in the middle of some more. Returns whether all was as it should be."""
    wrong: list[int] = []
    apart: list[str] = []
    async with stock_reference(model) as reference:
        async with pair(model, chaos=0.25, prefill=arguments, decode=arguments) as engine:
            for start in range(first, first + num_cases, CASES_AT_ONCE):
                watched = Watched(engine)
                seeds = range(start, min(start + CASES_AT_ONCE, first + num_cases))
                wrong += await wrong_seeds(watched, reference, seeds)  # type: ignore[arg-type]
                apart += watched.not_handed_over()
                print(f"{seeds.stop - first} of {num_cases} cases: wrong {wrong}, not handed over {apart}", flush=True)
            seeds = range(first + num_cases, first + num_cases + CASES_AT_ONCE)
            wrong += await wrong_long_answers(engine, reference, seeds)
            print(f"{len(seeds)} long answers: wrong {wrong}")
            for name, half in (("prefill", engine.prefill), ("decode", engine.decode)):
                print(f"  {name} engine: {losses(half.stats().cores[0])}", flush=True)
            ends = await wrong_with_a_loss(engine, engine.prefill, reference, seeds)
            print(f"prefill engine killed midway, of {len(seeds)}: wrong %s, other errors %s, EngineDied %s" % ends, flush=True)
            is_well = not (wrong or apart or any(ends))
        async with pair(model) as engine:
            ends = await wrong_with_a_loss(engine, engine.decode, reference, seeds)
            print(f"decode engine killed midway, of {len(seeds)}: wrong %s, other errors %s, EngineDied %s" % ends, flush=True)
    return is_well and not any(ends[:2])


async def print_ttfts(model: Path) -> None:
    """What the hand-over is worth."""
    async with pair(model) as engine:
        for num_tokens in (500, 1000, 2000, 4000):
            for name, wire in (("with hand-over", TimedWire), ("without", WithholdingWire)):
                total, decoding = await ttfts(engine, wire, num_tokens, 5)
                print(f"{num_tokens} tokens, {name}: TTFT {total:.3f} s, of which decode engine {decoding:.3f} s", flush=True)


async def _main(num_cases: int, first: int, arguments: Mapping[str, Any]) -> bool:
    from stream2llm_rag.tiny_model import build_tiny_model

    model = build_tiny_model()
    is_well = not num_cases or await run_cases(model, num_cases, first, arguments)
    if not arguments:
        await print_ttfts(model)
    return is_well


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="0: just the times")
    parser.add_argument("--first-seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--swap", action="store_true", help="both engines in small pools with host memory; no times")
    arguments = parser.parse_args()
    print(f"from seed {arguments.first_seed}")
    if not asyncio.run(_main(arguments.cases, arguments.first_seed, SWAPPING if arguments.swap else {})):
        raise SystemExit("something above is not as it should be")
