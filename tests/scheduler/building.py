"""Scheduler classes of vLLM and of ours, built as an engine core builds them, without an engine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from stream2llm_rag.engine.scheduler import AsyncStreamingScheduler, StreamingScheduler
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.engine.swap.choice import RANDOM
from stream2llm_rag.simulation.building import CoreShape, build_scheduler

SECRET = "drawn-at-start"


@dataclass(frozen=True, slots=True)
class Setup:
    """One configuration, small by default; what it shares with :class:`CoreShape` is as there.

    ``defer_frees`` is what a KV connector sets that writes on its own
    (``Scheduler.defer_block_free``). ``chaos`` is ours (:class:`CoreSettings`). ``stock`` takes vLLM's own scheduler.
    """

    policy: str = "fcfs"
    depth: int = 1
    v2_runner: bool = False
    prefix_caching: bool = True
    block_size: int = 4
    max_model_len: int = 40
    num_blocks: int = 24
    max_num_seqs: int = 4
    token_budget: int = 16
    defer_frees: bool = False
    chaos: float = 0.0
    num_host_blocks: int | None = None
    preempt: str = "random"
    stock: bool = False

    def __post_init__(self) -> None:
        assert (self.num_blocks - 1) * self.block_size >= self.max_model_len


_CLASSES: dict[tuple[bool, bool], type[Scheduler]] = {
    (True, False): Scheduler,
    (True, True): AsyncScheduler,
    (False, False): StreamingScheduler,
    (False, True): AsyncStreamingScheduler,
}


def make_scheduler(setup: Setup, dice: random.Random) -> Any:
    shape = CoreShape(
        num_blocks=setup.num_blocks,
        token_budget=setup.token_budget,
        max_num_seqs=setup.max_num_seqs,
        max_model_len=setup.max_model_len,
        block_size=setup.block_size,
        prefix_caching=setup.prefix_caching,
        depth=setup.depth,
        v2_runner=setup.v2_runner,
        num_host_blocks=setup.num_host_blocks,
    )
    scheduler_class = _CLASSES[setup.stock, setup.depth > 1]
    scheduler = build_scheduler(
        scheduler_class, shape, CoreSettings(SECRET, setup.policy, setup.chaos, setup.preempt), log_stats=True
    )
    scheduler.defer_block_free = setup.defer_frees
    if not setup.stock:
        scheduler._dice = dice
    if scheduler.connector is not None and setup.preempt == RANDOM:
        scheduler.connector.cost._dice = dice
    return scheduler
