"""Scheduler classes of vLLM and of ours, built as an engine core builds them, without an engine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

from stream2llm_rag.engine.scheduler import AsyncStreamingScheduler, StreamingScheduler
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.tiny_model import build_tiny_model

SECRET = "drawn-at-start"


@dataclass(frozen=True, slots=True)
class Setup:
    """One configuration. ``depth`` is how many steps may be in flight; 1 is synchronous scheduling.

    Depth 3 is pipeline parallelism, which vLLM schedules asynchronously with its V2 runner alone
    (``VllmConfig.max_concurrent_batches``). ``defer_frees`` is what a KV connector sets that writes on its own
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
    stock: bool = False

    def __post_init__(self) -> None:
        assert self.depth < 3 or self.v2_runner
        assert self.max_num_seqs <= self.token_budget
        assert (self.num_blocks - 1) * self.block_size >= self.max_model_len


_CLASSES: dict[tuple[bool, bool], type[Scheduler]] = {
    (True, False): Scheduler,
    (True, True): AsyncScheduler,
    (False, False): StreamingScheduler,
    (False, True): AsyncStreamingScheduler,
}


def make_scheduler(setup: Setup, dice: random.Random) -> Any:
    config = _vllm_config(setup)
    spec = FullAttentionSpec(block_size=setup.block_size, num_kv_heads=1, head_size=8, dtype=torch.float32)
    with CoreSettings(SECRET, setup.policy, setup.chaos).in_environment():
        scheduler: Any = _CLASSES[setup.stock, setup.depth > 1](
            vllm_config=config,
            kv_cache_config=KVCacheConfig(setup.num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=setup.block_size,
            hash_block_size=setup.block_size,
            log_stats=True,
        )
    scheduler.use_v2_model_runner = setup.v2_runner  # which vLLM refuses on a CPU
    scheduler.defer_block_free = setup.defer_frees
    if not setup.stock:
        scheduler._dice = dice
    return scheduler


def _vllm_config(setup: Setup) -> VllmConfig:
    config = VllmConfig(
        model_config=ModelConfig(
            model=str(_model()), skip_tokenizer_init=True, dtype="float32", max_model_len=setup.max_model_len
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=setup.token_budget,
            max_model_len=setup.max_model_len,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
        ),
        cache_config=CacheConfig(block_size=setup.block_size, enable_prefix_caching=setup.prefix_caching),
        device_config=DeviceConfig("cpu"),
    )
    # Both are what a GPU engine has; vLLM turns the first off on a CPU, and wants devices for the second.
    config.scheduler_config.async_scheduling = setup.depth > 1
    config.parallel_config.pipeline_parallel_size = max(1, setup.depth - 1)
    config.cache_config.num_gpu_blocks = setup.num_blocks
    return config


@cache
def _model() -> Path:
    return build_tiny_model()
