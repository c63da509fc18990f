"""What the tests of the simulator share: a small engine core, simple clocks, and random workloads."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.simulation.building import CoreShape
from stream2llm_rag.simulation.trace import Chunk, Query

SMALL = CoreShape(num_blocks=25, token_budget=16, max_num_seqs=8, max_model_len=64, block_size=4)
FIXED = ("ns", "native", "vllm-s")
OURS = (*sorted(POLICIES), "fcfs+hints")


def one_second(items: Sequence[tuple[int, int]]) -> float:
    return 1.0


def linear(items: Sequence[tuple[int, int]]) -> float:
    """About as an H200 does: a base, each token, attention, and the KV that is read."""
    return sum((4e-3, *(1.38e-5 * n + 4.8e-10 * n * (c + n / 2) + 1.95e-8 * c for n, c in items)))


def random_query(dice: random.Random, name: str, *, updates: bool) -> Query:
    """Up to 60 tokens with the answer, in up to 6 chunks; a plain request now and then."""
    chunks, length, after_s = [], 0, 0.0
    for _ in range(dice.choice([1, 2, 3, 6])):
        after_s += dice.choice([0.0, dice.random(), 8 * dice.random()])
        num_kept = dice.randint(1, length) if updates and length and dice.random() < 0.6 else None
        kept = length if num_kept is None else num_kept
        chunks.append(Chunk(after_s, dice.choice([0, 1, dice.randint(1, 25)]), num_kept))
        if kept + chunks[-1].num_tokens > 50:
            chunks.pop()
            break
        length = kept + chunks[-1].num_tokens
    return Query(name, 4 * dice.random(), (*chunks, Chunk(after_s, dice.randint(1, 5))), dice.choice([1, 1, 2, 5]))


def random_trace(seed: int, num_queries: int = 40) -> tuple[Query, ...]:
    """Short, and for :data:`SMALL` far too much at once. Those of odd seeds have updates."""
    dice, updates = random.Random(seed), seed % 2 == 1
    return tuple(random_query(dice, f"q{number}", updates=updates) for number in range(num_queries))
