"""Random streams on engines of several processes. Run as a command: ``python -m tests.engine.parallel tensor data``."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream2llm_rag.engine.disaggregated import DisaggregatedEngine
from stream2llm_rag.engine.engine import Stream2LLMEngine

from .cases import CASES_AT_ONCE, COMMON, TIGHT, Reference, stock_reference, wrong_seeds
from .disaggregated import SWAPPING, Watched, losses, pair, shared_cores

TENSOR: dict[str, Any] = {"tensor_parallel_size": 2}
# Stages exchange tensors whose shapes a compiled graph knows; eager mode does not on the CPU platform.
PIPELINE: dict[str, Any] = {
    "pipeline_parallel_size": 2,
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}
KINDS: dict[str, dict[str, Any]] = {
    "tensor": TENSOR,
    "data": {"data_parallel_size": 2},
    "pipeline": PIPELINE,
    "tensor-swap": {**TENSOR, **SWAPPING},
    "pipeline-swap": {**PIPELINE, **SWAPPING},
}
PREFILL_KINDS = {f"{kind}-prefill": KINDS[kind] for kind in ("tensor", "data")}
CHAOS = 0.25


@asynccontextmanager
async def started(model: Path, kind: str) -> AsyncIterator[Stream2LLMEngine | DisaggregatedEngine]:
    """The engine of that kind, in which every fourth step evicts somebody at random first."""
    if kind in PREFILL_KINDS:
        async with pair(model, chaos=CHAOS, prefill=PREFILL_KINDS[kind]) as both:
            yield both
        return
    engine = Stream2LLMEngine(model, **{**COMMON, **TIGHT, **KINDS[kind]})
    engine._settings = replace(engine._settings, chaos=CHAOS)
    with shared_cores():
        async with engine:
            yield engine


async def run(model: Path, kind: str, reference: Reference, num_cases: int) -> bool:
    """Whether each answer was stock vLLM's; prints what happened."""
    started_s = time.monotonic()
    wrong: list[int] = []
    apart: list[str] = []
    async with started(model, kind) as engine:
        print(f"{kind} parallel 2: started in {time.monotonic() - started_s:.0f} s", flush=True)
        for start in range(0, num_cases, CASES_AT_ONCE):
            watched = Watched(engine)
            wrong += await wrong_seeds(watched, reference, range(start, min(start + CASES_AT_ONCE, num_cases)))
            apart += watched.not_handed_over() if isinstance(engine, DisaggregatedEngine) else []
        half = engine.prefill if isinstance(engine, DisaggregatedEngine) else engine
        cores = half.stats().cores
    for index, core in enumerate(cores):
        print(f"  core {index}: {core.num_ops} operations, {core.num_ops_refused} refused, {losses(core)}")
    print(f"  {num_cases} cases, wrong: {wrong}, not handed over: {apart}", flush=True)
    has_swapped = not half._host_kv_gib or all(core.num_blocks_in for core in cores)
    is_quiet = all(core.num_ops and not core.num_ops_refused and not core.num_partial for core in cores)
    return not (wrong or apart) and has_swapped and is_quiet


async def _main(kinds: list[str], num_cases: int) -> bool:
    from stream2llm_rag.tiny_model import build_tiny_model

    model = build_tiny_model()
    async with stock_reference(model) as reference:
        return all([await run(model, kind, reference, num_cases) for kind in kinds])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=[*KINDS, *PREFILL_KINDS])
    parser.add_argument("--cases", type=int, default=60)
    arguments = parser.parse_args()
    if not asyncio.run(_main(arguments.kinds, arguments.cases)):
        raise SystemExit("something above is not as it should be")
