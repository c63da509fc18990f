"""What planning costs: seconds a step beyond vLLM's own ``schedule()``, and an operation, at 10 to 2,000 live requests.

Drives the real scheduler classes in process, without a model. Stock vLLM and ours take turns in one run, each over the same
requests: a fifth of them decode, the others are partial streams that idle on their KV (which stock vLLM cannot have: there the
decoding fifth is all). ``tight`` has no free block for them, so that each step plans and evicts.

    python -m benchmarks.planning [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.protocol import Op, OpKind
from tests.scheduler.building import SECRET, Setup, make_scheduler

BLOCK_SIZE = 16
NUM_PROMPT_TOKENS = 64
NUM_STEPS = 60
SIZES = (10, 100, 500, 2000)
TIMES = ("stock_step_us", "our_step_us", "beyond_stock_us", "mean_beyond_stock_us", "slowest_beyond_stock_us")


class Load:
    """A scheduler under a load that stays as it is: decoding requests that never end, and idle streams."""

    def __init__(self, num_live: int, *, stock: bool, tight: bool) -> None:
        self.num_decoding = max(1, num_live // 5)
        blocks_each = NUM_PROMPT_TOKENS // BLOCK_SIZE
        room = 4 * num_live if not tight else 0
        setup = Setup(
            policy="fcfs",
            block_size=BLOCK_SIZE,
            num_blocks=1 + num_live * blocks_each + room + 2 * self.num_decoding,
            max_model_len=4 * NUM_PROMPT_TOKENS,
            max_num_seqs=2 * num_live,
            token_budget=num_live * NUM_PROMPT_TOKENS + 8,
            stock=stock,
        )
        self.scheduler = make_scheduler(setup, random.Random(0))
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        for number in range(self.num_decoding):
            self.scheduler.add_request(self._request(f"decode-{number}", number, SamplingParams(max_tokens=10**6)))
        if not stock:
            for number in range(num_live - self.num_decoding):
                self.send(f"idle-{number}", Op(OpKind.APPEND, opens=True), NUM_PROMPT_TOKENS)
        for _ in range(3):
            self.step()

    def send(self, request_id: str, op: Op, num_tokens: int) -> float:
        """Seconds that one operation takes."""
        request = self._request(request_id, hash(request_id) % 10**6, SamplingParams(max_tokens=1), num_tokens)
        request.sampling_params.extra_args = protocol.encode(op, SECRET)
        started = time.perf_counter()
        self.scheduler.add_request(request)
        return time.perf_counter() - started

    def step(self) -> float:
        """Seconds that ``schedule()`` takes in one step."""
        started = time.perf_counter()
        output = self.scheduler.schedule()
        elapsed = time.perf_counter() - started
        names = list(output.num_scheduled_tokens)
        sampled = [[7] if self._samples(name) else [] for name in names]
        result = ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled, None, {})
        self.scheduler.update_from_output(output, result)
        return elapsed

    def _samples(self, name: str) -> bool:
        request = self.scheduler.requests[name]
        return name.startswith("decode") and request.num_computed_tokens == request.num_tokens

    def _request(self, name: str, seed: int, params: SamplingParams, num_tokens: int = NUM_PROMPT_TOKENS) -> Request:
        dice = random.Random(seed)
        tokens = [dice.randrange(2000) for _ in range(num_tokens)]
        return Request(name, tokens, params, None, block_hasher=self._hasher)


def measure(num_live: int, *, tight: bool) -> dict[str, Any]:
    """Median microseconds of stock's step, of ours, and of one append."""
    ours, stock = Load(num_live, stock=False, tight=tight), Load(num_live, stock=True, tight=False)
    pairs = [(ours.step(), stock.step()) for _ in range(NUM_STEPS)]
    ops = [ours.send(f"idle-{n}", Op(OpKind.APPEND), 16) for n in range(num_live - ours.num_decoding)]
    our_step, stock_step = (statistics.median(column) * 1e6 for column in zip(*pairs, strict=True))
    return {
        "num_live": num_live,
        "pool": "tight" if tight else "ample",
        "stock_step_us": stock_step,
        "our_step_us": our_step,
        "beyond_stock_us": our_step - stock_step,
        "mean_beyond_stock_us": statistics.mean(a - b for a, b in pairs) * 1e6,
        "slowest_beyond_stock_us": max(a - b for a, b in pairs) * 1e6,
        "ratio": statistics.median(a / b for a, b in pairs),
        "op_us": statistics.median(ops) * 1e6,
        "num_evictions": ours.scheduler._feedback.counters.num_evictions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    names = ("live", "pool", "stock step", "our step", "beyond", "mean", "slowest", "ratio", "an op", "evictions")
    print(" ".join(f"{name:>10}" for name in names))
    for tight in (False, True):
        for num_live in SIZES:
            row = measure(num_live, tight=tight)
            rows.append(row)
            times = (f"{row[name]:.0f} us" for name in TIMES)
            cells = (
                row["num_live"],
                row["pool"],
                *times,
                f"{row['ratio']:.2f}",
                f"{row['op_us']:.0f} us",
                row["num_evictions"],
            )
            print(" ".join(f"{cell:>10}" for cell in cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
