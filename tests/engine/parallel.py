"""Random streams on engines of several processes. Run as a command: ``python -m tests.engine.parallel tensor data``."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from stream2llm_rag.engine.engine import Stream2LLMEngine

from .cases import CASES_AT_ONCE, COMMON, TIGHT, Reference, stock_reference, wrong_seeds
from .disaggregated import Watched, shared_cores

KINDS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_parallel_size": 2},
    "data": {"data_parallel_size": 2},
    # Stages exchange tensors whose shapes a compiled graph knows; eager mode does not on the CPU platform.
    "pipeline": {"pipeline_parallel_size": 2, "enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}},
}


async def run(model: Path, kind: str, reference: Reference, num_cases: int) -> bool:
    """Whether each answer was stock vLLM's; prints what happened."""
    started = time.monotonic()
    with shared_cores():
        async with Stream2LLMEngine(model, **{**COMMON, **TIGHT, **KINDS[kind]}) as engine:
            print(f"{kind} parallel 2: started in {time.monotonic() - started:.0f} s", flush=True)
            wrong: list[int] = []
            for start in range(0, num_cases, CASES_AT_ONCE):
                watched = Watched(engine)
                seeds = range(start, min(start + CASES_AT_ONCE, num_cases))
                wrong += await wrong_seeds(watched, reference, seeds)
            cores = engine.stats().cores
    for index, core in enumerate(cores):
        print(f"  core {index}: {core.num_ops} operations, {core.num_ops_refused} refused, {core.num_evictions} evictions")
    print(f"  {num_cases} cases, wrong: {wrong}", flush=True)
    return not wrong and all(core.num_ops and not core.num_ops_refused and not core.num_partial for core in cores)


async def _main(kinds: list[str], num_cases: int) -> bool:
    from stream2llm_rag.tiny_model import build_tiny_model

    model = build_tiny_model()
    async with stock_reference(model) as reference:
        return all([await run(model, kind, reference, num_cases) for kind in kinds])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--cases", type=int, default=60)
    arguments = parser.parse_args()
    if not asyncio.run(_main(arguments.kinds, arguments.cases)):
        raise SystemExit("something above is not as it should be")
