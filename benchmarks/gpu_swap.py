"""What swap costs on a machine: bandwidth of the copies, how long they hold up the forward pass, and that answers stay equal.

    python -m benchmarks.gpu_swap [--parts bandwidth stall equality] [--json FILE]
    python -m benchmarks.gpu_swap --tiny   # a small model and a small cache, also without a GPU

``bandwidth`` copies blocks as large as those of Llama-3.1-8B, out and in, at several sizes. ``stall`` runs steps of matrix
products without copies, with copies out that wait for the step before (``fenced``) or start beside it (``early``), and with
copies in. ``equality`` asks stock vLLM, and this engine with a cache so small that prompts push each other out and swap forced
on all of them; the model has that shape and made-up weights. On a GPU kernels round by batch: ``VLLM_BATCH_INVARIANT=1``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.v1.engine.async_llm import AsyncLLM

from stream2llm_rag import Stream2LLMEngine
from stream2llm_rag.bench.shapes import LLAMA_8B, write_model
from stream2llm_rag.engine.swap.books import Copy, StepCopies
from stream2llm_rag.engine.swap.copies import Copier, make_copier
from stream2llm_rag.engine.swap.metadata import SwapMetadata
from stream2llm_rag.tiny_model import build_tiny_model

PARTS = ("bandwidth", "stall", "equality")
NUM_REPEATS = 9


@dataclass(frozen=True)
class Scale:
    """Of the synthetic cache: Llama-3.1-8B in bf16 with blocks of 16 tokens, or small."""

    num_layers: int = 32
    layer_block_bytes: int = 64 << 10
    num_blocks: int = 4096
    copy_sizes: tuple[int, ...] = (1, 8, 64, 512)
    width: int = 4096
    num_products: int = 96
    num_tokens: int = 2048


TINY = Scale(
    num_layers=2, layer_block_bytes=4096, num_blocks=64, copy_sizes=(1, 8, 16), width=128, num_products=4, num_tokens=64
)


class Bench:
    """A cache of random bytes, host slots for all of it, and a stand-in for the forward pass."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        words = scale.layer_block_bytes // 8
        self.cache = [torch.randint(2**62, (scale.num_blocks, words), device=self.device) for _ in range(scale.num_layers)]
        self.copier: Copier = make_copier(self.cache, scale.num_blocks)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self._weights = torch.randn(scale.width, scale.width, device=self.device, dtype=dtype)
        self._tokens = torch.randn(scale.num_tokens, scale.width, device=self.device, dtype=dtype)
        self._step = 0

    def step(self, copies: StepCopies, *, computes: bool = False) -> None:
        """Submit a step, as a worker does."""
        self.copier.begin(SwapMetadata(self._step, copies))
        if computes:
            for _ in range(self.scale.num_products):
                torch.mm(self._tokens, self._weights)
        self.copier.end()
        self._step += 1

    def wait(self) -> None:
        """Until the device has done all of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, submit: Callable[[], None]) -> float:
        """The median time from submitting to the end."""
        times = []
        for _ in range(NUM_REPEATS):
            self.wait()
            started = time.perf_counter()
            submit()
            self.wait()
            times.append(time.perf_counter() - started)
            self.copier.take_times()
        return statistics.median(times)


def bandwidth(bench: Bench) -> list[dict[str, Any]]:
    """GB/s by direction and number of blocks, and that the bytes come back."""
    rows, dice = [], random.Random(0)
    block_bytes = bench.scale.num_layers * bench.scale.layer_block_bytes
    for num_blocks in bench.scale.copy_sizes:
        blocks = dice.sample(range(bench.scale.num_blocks), num_blocks)
        copies = [Copy(block, slot) for slot, block in enumerate(blocks)]
        out_s = bench.seconds(lambda made=copies: bench.step(StepCopies([], made, [])))  # type: ignore[misc]
        before = [layer[blocks].clone() for layer in bench.cache]
        for layer in bench.cache:
            layer[blocks] = 0
        in_s = bench.seconds(lambda made=copies: bench.step(StepCopies([], [], made)))  # type: ignore[misc]
        came_back = all(torch.equal(layer[blocks], rows_) for layer, rows_ in zip(bench.cache, before, strict=True))
        size = num_blocks * block_bytes / 1e9
        rows.append({"num_blocks": num_blocks, "out_gb_s": size / out_s, "in_gb_s": size / in_s, "bytes_come_back": came_back})
    return rows


def stall(bench: Bench, num_steps: int = 8) -> list[dict[str, Any]]:
    """Milliseconds a step, by what it copies."""
    num_blocks = bench.scale.copy_sizes[-2]
    copies = [Copy(block, block) for block in range(num_blocks)]
    kinds = {
        "none": StepCopies([], [], []),
        "fenced out": StepCopies([], copies, []),
        "early out": StepCopies(copies, [], []),
        "in": StepCopies([], [], copies),
    }

    def run(made: StepCopies) -> None:
        for _ in range(num_steps):
            bench.step(made, computes=True)

    times = {name: bench.seconds(lambda made=made: run(made)) / num_steps for name, made in kinds.items()}  # type: ignore[misc]
    return [
        {"copies": name, "num_blocks": num_blocks, "step_ms": 1e3 * step_s, "stall_ms": 1e3 * (step_s - times["none"])}
        for name, step_s in times.items()
    ]


async def equality(model: str, args: dict[str, Any], num_tokens: int) -> list[dict[str, Any]]:
    """Greedy answers of stock vLLM, and of this engine when everybody is swapped."""
    dice = random.Random(0)
    prompts = [[dice.randrange(5, 1000) for _ in range(num_tokens)] for _ in range(8)]
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
    expected = await _stock_answers(model, args, prompts, sampling)
    block_size = args["block_size"]
    tight = {**args, "num_gpu_blocks_override": 2 + 3 * (num_tokens + 16) // block_size}
    async with Stream2LLMEngine(model, host_kv_gib=4, preempt="swap", **tight) as engine:
        found = await asyncio.gather(*(_streamed(engine, prompt, sampling) for prompt in prompts))
        [core] = engine.stats().cores
    num_equal = sum(one == other for one, other in zip(found, expected, strict=True))
    return [
        {"num_answers": len(found), "num_equal": num_equal, "blocks_out": core.num_blocks_out, "blocks_in": core.num_blocks_in}
    ]


async def _stock_answers(
    model: str, args: dict[str, Any], prompts: list[list[int]], sampling: dict[str, Any]
) -> list[list[int]]:
    stock = AsyncLLM.from_engine_args(AsyncEngineArgs(model, disable_log_stats=True, **args))

    async def answer(number: int, prompt: list[int]) -> list[int]:
        last = [o async for o in stock.generate(tokens_input(prompt), SamplingParams(**sampling), str(number))][-1]
        return list(last.outputs[0].token_ids)

    answers = await asyncio.gather(*(answer(number, prompt) for number, prompt in enumerate(prompts)))
    stock.shutdown()
    return answers


async def _streamed(engine: Stream2LLMEngine, prompt: list[int], sampling: dict[str, Any]) -> list[int]:
    """Two halves, with the other prompts' between them."""
    half = len(prompt) // 2
    async with await engine.open(prompt[:half]) as session:
        await asyncio.sleep(0.5)
        outputs = await session.finish(prompt[half:], sampling)
        return [token for output in [o async for o in outputs] for token in output.token_ids]


def main() -> None:
    """Print each part as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found: dict[str, Any] = {"device": device}
    bench = Bench(TINY if asked.tiny else Scale())
    if "bandwidth" in asked.parts:
        found["bandwidth"] = bandwidth(bench)
    if "stall" in asked.parts:
        found["stall"] = stall(bench)
    del bench
    if "equality" in asked.parts:
        found["equality"] = asyncio.run(equality(*_model(asked.tiny)))
    for part, rows in found.items():
        sys.stdout.write(f"{part}: {_table(rows)}\n")
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


def _model(tiny: bool) -> tuple[str, dict[str, Any], int]:
    """A model, engine arguments, and how many tokens a prompt has."""
    if tiny:
        return str(build_tiny_model()), {"enforce_eager": True, "block_size": 32, "dtype": "float32", "max_model_len": 700}, 600
    made = write_model(Path(tempfile.mkdtemp()), LLAMA_8B)
    return str(made), {"load_format": "dummy", "skip_tokenizer_init": True, "block_size": 16, "max_model_len": 8300}, 8000


def _table(rows: Any) -> str:
    if isinstance(rows, str):
        return rows
    lines = ["", *("  ".join(f"{name} {_text(value)}" for name, value in row.items()) for row in rows)]
    return "\n  ".join(lines)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
