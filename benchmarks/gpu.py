"""Streaming against the usual way on one GPU: Llama-3.1-8B's shape, the paper's workloads at its rates for one GPU of two.

Nothing is downloaded and no other service is needed: the configuration is written here, the weights are made up by vLLM,
prompts are random token ids. A cell is measured round by round and kept in a file; an interrupted one goes on where it was, and
a run ends by itself within its limit, so that several runs fill a cell. The ways take turns within a run.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --cell crawler-q2-p15                 # and again, until it says that all rounds are there
    python benchmarks/gpu.py --cell crawler-q2-p15 --ways ns,fcfs,lcas
    python benchmarks/gpu.py --cell equality                       # the scheduler's answers against stock vLLM's
    python benchmarks/gpu.py                                       # tables of all that is there, and results/gpu/table.json
    python benchmarks/gpu.py --tiny --folder build/tiny --cell tiny # the same code on a CPU, with a small model
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it compiles kernels at its first use
        "TOKENIZERS_PARALLELISM": "false",
    }
)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from stream2llm_rag.bench import RoundSettings, Way, open_targets, parse_way, warm_up
from stream2llm_rag.bench.cells import Cell, find_cell, pending_rounds, run_cell, ways_for
from stream2llm_rag.bench.ledger import Entry, read_entries
from stream2llm_rag.bench.machine import describe_gpu, describe_machine
from stream2llm_rag.bench.results import all_results, to_runs
from stream2llm_rag.bench.shapes import LLAMA_8B, SMALL, WEIGHT_BYTES, write_model
from stream2llm_rag.bench.table import figure, text_table
from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.errors import InvalidInputError, Stream2LLMError
from stream2llm_rag.simulation.model import KV_BYTES_PER_TOKEN
from stream2llm_rag.simulation.report import compare
from stream2llm_rag.tiny_model import build_tiny_model

EQUALITY, EQUALITY_INVARIANT = "equality", "equality-batch-invariant"
H200_BLOCKS = 46_875
"""KV blocks of 16 tokens on one H200 at memory utilisation 0.8: pools are shares of it."""
BLOCK_SIZE = 16
START_S = 45.0
"""What an engine takes to start, as far as that can be told beforehand."""
ACTIVATION_BYTES = 6 * 2**30
"""What an engine takes beside weights and KV, generously."""


@dataclass(frozen=True)
class Setup:
    """What differs between the GPU and the trial on a CPU."""

    shape: dict[str, Any]
    cells: Sequence[Cell]
    engine_args: dict[str, Any]
    vocabulary: range
    stall_limit_s: float
    ways: str
    machine: dict[str, str]


def gpu_setup() -> Setup:
    attention = os.environ.get("STREAM2LLM_ATTENTION")
    return Setup(
        shape=LLAMA_8B,
        cells=[
            *(gpu_cell("crawler", 2, pool=pool) for pool in (0.15, 0.35)),
            *(gpu_cell("anns", 1, pool=pool) for pool in (0.2, 0.35)),
            *(gpu_cell("crawler", 2, delay=10, pool=pool) for pool in (0.35, 0.15)),
            *(gpu_cell("anns", 1, delay=10, pool=pool) for pool in (0.35, 0.2)),  # at the paper's 30 a round takes too long
            *(gpu_cell("crawler", qps, pool=0.35) for qps in (1, 0.5, 0.25)),
            *(gpu_cell("anns", qps, pool=0.35) for qps in (0.5, 0.25, 0.125)),
        ],
        engine_args={
            "dtype": "bfloat16",
            "block_size": BLOCK_SIZE,
            "gpu_memory_utilization": 0.1,  # engines share the GPU: kv_cache_memory_bytes says what each takes
            "max_num_seqs": 1024,
            **({"attention_config": {"backend": attention}} if attention else {}),
        },
        vocabulary=range(1000, 120_000),
        stall_limit_s=30.0,
        ways=f"ns,native,{DEFAULT_POLICY}",
        machine=describe_machine(),
    )


def gpu_cell(workload: str, qps: float, *, delay: float = 1.0, pool: float) -> Cell:
    """``qps`` is half of the paper's, which had two GPUs; ``pool`` a share of :data:`H200_BLOCKS`."""
    arrivals_s, trim_s = (100.0, 10.0) if delay == 1 else (120.0, 30.0)
    delayed = "" if delay == 1 else f"-d{delay:g}"
    return Cell(
        name=f"{workload}-q{qps:g}{delayed}-p{100 * pool:g}",
        workload=workload,
        qps=qps,
        delay=delay,
        num_blocks=int(pool * H200_BLOCKS),
        token_budget={"crawler": 2048, "anns": 8192}[workload],
        max_model_len={"crawler": 73_728, "anns": 131_072}[workload],
        requests_per_round=max(1, round(qps * arrivals_s)),
        num_rounds=-(-1050 // max(1, round(qps * (arrivals_s - 2 * trim_s)))),  # so that a P99 rests on 1,000 requests
        trim_s=trim_s,
    )


def tiny_setup() -> Setup:
    """So small a pool that vLLM's own streaming stands still in it."""
    return Setup(
        shape=SMALL,
        cells=[Cell("tiny", "crawler", 20.0, 0.1, 132, 1024, 4096, requests_per_round=30, num_rounds=1, trim_s=0.0)],
        engine_args={"dtype": "float32", "block_size": 32, "max_num_seqs": 256},
        vocabulary=range(5, 2000),
        stall_limit_s=3.0,
        ways="ns,native",
        machine=describe_machine(),
    )


def engine_args(setup: Setup, cell: Cell) -> dict[str, Any]:
    args = {
        **setup.engine_args,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "enforce_eager": True,  # capturing graphs takes minutes of every run; what is measured is prefill
        "enable_prefix_caching": False,  # as in the paper
        "max_model_len": cell.max_model_len,
        "max_num_batched_tokens": cell.token_budget,
        "num_gpu_blocks_override": cell.num_blocks,
    }
    if setup.shape is LLAMA_8B:  # no profiling of memory, in which the engines would disturb each other
        args["kv_cache_memory_bytes"] = cell.num_blocks * BLOCK_SIZE * KV_BYTES_PER_TOKEN
    return args


def check_memory(cell: Cell, ways: Sequence[Way], gpu_memory_mib: int) -> None:
    """Refuse engines that the GPU cannot hold together, before minutes were spent on starting them."""
    num_engines = len({way.name if way.policy else "stock" for way in ways})
    needed_mib = num_engines * (WEIGHT_BYTES + cell.num_blocks * BLOCK_SIZE * KV_BYTES_PER_TOKEN + ACTIVATION_BYTES) // 2**20
    if needed_mib > gpu_memory_mib:
        raise InvalidInputError(
            f"{num_engines} engines with this pool take {needed_mib} MiB, the GPU has {gpu_memory_mib}. "
            "Write fewer --ways, or a cell with a smaller pool."
        )


async def measure(setup: Setup, cell: Cell, ways: list[Way], folder: Path, ends_at: float) -> bool:
    """Whether all rounds are there in the end."""
    settings = RoundSettings(setup.vocabulary, setup.stall_limit_s)
    entries, left_s = read_entries(cell.path(folder)), ends_at - time.monotonic()
    if not pending_rounds(cell, ways, entries):
        return True
    now = ways_for(cell, ways, entries, settings, left_s=left_s, start_s=START_S)
    machine = setup.machine
    if setup.shape is LLAMA_8B:
        machine = machine | describe_gpu()
        check_memory(cell, now, int(machine["gpu_memory_mib"]))
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory) / "model", setup.shape)
        async with open_targets(model, now, engine_args(setup, cell), lambda way: note(f"starting {way.name}")) as targets:
            await warm_up(targets, 2 * cell.token_budget, settings)
            note(f"warm; {max(0.0, ends_at - time.monotonic()):.0f} s are left")
            await run_cell(cell, targets, folder, settings, ends_at=ends_at, machine=machine, on_round=note_round)
    return not pending_rounds(cell, ways, read_entries(cell.path(folder)))


async def check_equality(setup: Setup, name: str, policy: str, folder: Path) -> bool:
    """With real weights, small ones: under those that vLLM makes up all tokens are nearly tied."""
    from stream2llm_rag.bench.checking import CheckSettings, check

    args = setup.engine_args | {"skip_tokenizer_init": True, "max_model_len": 4096, "enforce_eager": True}
    settings = CheckSettings(
        num_prompts=32,
        num_output_tokens=16,
        tokens=1 / 32,
        time=0.1,
        num_blocks=8192 // args["block_size"],
        token_budgets=(2048, 1024),
        vocabulary=range(5, 2000),
    )
    found = await check(parse_way(policy), build_tiny_model(), args, settings)
    streamed = found.streamed
    holds = found.holds and (name == EQUALITY or streamed.num_equal == streamed.num_answers)
    stored = {"name": name, "policy": policy, "holds": holds, **asdict(found), "machine": setup.machine}
    write_json(folder / f"{name}.json", stored)
    print(
        f"{name}: {'holds' if holds else 'FAILS'}. {streamed.num_equal} of {streamed.num_answers} answers are equal, "
        f"{streamed.num_wrong} differ by more than a near-tie of {figure(streamed.tie)} nats. "
        f"Control: {found.control.num_wrong} of {found.control.num_answers} found wrong. {found.num_evictions} evictions."
    )
    return holds


def report(cells: Sequence[Cell], folder: Path) -> None:
    """Print a table for each cell that has rounds, and write all of them."""
    measured = [(cell, read_entries(cell.path(folder))) for cell in cells]
    for cell, entries in measured:
        if entries:
            late_s = max(entry.lateness_s[1] for entry in entries)
            print(f"\n{cell.name}: {cell.num_blocks} blocks. The driver was late by at most {late_s:.3f} s.")
            print(text_table(compare(to_runs(cell, entries))))
    write_json(folder / "table.json", all_results(measured))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def note(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def note_round(entry: Entry) -> None:
    ttft_s = sorted(record.ttft_s for record in entry.records)
    end = " (stalled)" if entry.stalled else " (cut off)" if entry.cut_off else ""
    note(f"round {entry.index} {entry.way}: TTFT P50 {figure(ttft_s[len(ttft_s) // 2])} s, {entry.duration_s:.0f} s{end}")


def list_cells(cells: Sequence[Cell], folder: Path) -> None:
    for cell in cells:
        done = [f"{entry.way} {entry.index}" for entry in read_entries(cell.path(folder))]
        print(f"{cell.name:20} {cell.num_rounds:3} rounds of {cell.requests_per_round}  {', '.join(done)}".rstrip())
    print(EQUALITY, EQUALITY_INVARIANT, sep="\n")


def run(arguments: argparse.Namespace, setup: Setup, started: float) -> int:
    ways = [parse_way(name) for name in (arguments.ways or setup.ways).split(",")]
    if arguments.list:
        list_cells(setup.cells, arguments.folder)
    elif arguments.cell in (EQUALITY, EQUALITY_INVARIANT):
        if arguments.cell == EQUALITY_INVARIANT:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        policy = next((way.policy for way in ways if way.policy is not None), DEFAULT_POLICY)
        return 0 if asyncio.run(check_equality(setup, arguments.cell, policy, arguments.folder)) else 1
    elif arguments.cell:
        cell = find_cell(arguments.cell, setup.cells)
        is_done = asyncio.run(measure(setup, cell, ways, arguments.folder, started + arguments.limit_s))
        note("all rounds are there" if is_done else "rounds are left: run it again")
        report([cell], arguments.folder)
    else:
        report(setup.cells, arguments.folder)
    return 0


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the cells, the most important first, and what they have")
    parser.add_argument("--cell", metavar="NAME", help="measure this cell for as long as the limit allows")
    parser.add_argument("--ways", metavar="A,B", help="ns, native, or policies; +hints behind one tells what is to come")
    parser.add_argument("--limit-s", type=float, default=465.0, help="end by then, all told")
    parser.add_argument("--folder", type=Path, default=Path("results/gpu"), help="where rounds are kept")
    parser.add_argument("--tiny", action="store_true", help="try it on a CPU")
    arguments = parser.parse_args()
    try:
        return run(arguments, tiny_setup() if arguments.tiny else gpu_setup(), started)
    except Stream2LLMError as error:
        note(f"error: {error}")
        return 2


if __name__ == "__main__":  # vLLM's processes import this file again
    raise SystemExit(main())
