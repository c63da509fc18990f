"""Scheduler classes of vLLM and of ours, built as an engine core builds them, without an engine or a model."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.engine.swap.connector import swap_config
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.model import LLAMA_8B

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class CoreShape:
    """What the engine core of one experiment is like; the defaults are the paper's for its crawler workload.

    ``num_blocks`` are those of the pool, of which vLLM keeps one for itself; by default as many as two H200 have beside the
    model. ``depth`` is how many steps may be in flight: 1 is synchronous scheduling, 2 asynchronous; 3 is two pipeline stages,
    which vLLM schedules asynchronously with its V2 runner alone. ``v2_runner`` follows the slot rules of the model runner that
    GPUs have. ``num_host_blocks`` are those that host memory has room for.
    """

    num_blocks: int = 98_000
    token_budget: int = 2048
    max_num_seqs: int = 1024
    max_model_len: int = 131072
    block_size: int = 16
    prefix_caching: bool = False
    depth: int = 1
    v2_runner: bool = True
    num_host_blocks: int | None = None

    def __post_init__(self) -> None:
        for name in ("token_budget", "max_num_seqs", "block_size", "depth"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}. Write 1 or more.")
        if self.max_num_seqs > self.token_budget:
            raise InvalidInputError(f"max_num_seqs is {self.max_num_seqs}. Write at most token_budget, {self.token_budget}.")
        if self.depth > 2 and not self.v2_runner:
            raise InvalidInputError(f"depth is {self.depth}. Write 1 or 2, or v2_runner=True.")
        if self.max_model_len < 2 or self.num_blocks < 2:
            raise InvalidInputError(
                f"{self.num_blocks} blocks and max_model_len {self.max_model_len}. Write 2 or more of each."
            )


def build_scheduler(
    scheduler_class: type[Scheduler], shape: CoreShape, settings: CoreSettings, *, log_stats: bool = False
) -> Any:
    """Make a scheduler as vLLM's ``EngineCore`` does. ``settings`` are for classes of ours; vLLM's own do not ask for them."""
    config = _vllm_config(shape)
    with settings.in_environment():
        scheduler: Any = scheduler_class(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(shape.num_blocks, [], [KVCacheGroupSpec(["layer"], _kv_spec(shape.block_size))]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=shape.block_size,
            hash_block_size=shape.block_size,
            log_stats=log_stats,
        )
    scheduler.use_v2_model_runner = shape.v2_runner  # which vLLM refuses on a CPU
    return scheduler


@cache
def _vllm_config(shape: CoreShape) -> VllmConfig:
    config = VllmConfig(
        model_config=_model_config(shape.max_model_len),
        scheduler_config=SchedulerConfig(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.token_budget,
            max_model_len=shape.max_model_len,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
        ),
        cache_config=CacheConfig(block_size=shape.block_size, enable_prefix_caching=shape.prefix_caching),
        device_config=DeviceConfig("cpu"),
    )
    # Both are what a GPU engine has; vLLM turns the first off on a CPU, and wants devices for the second.
    config.scheduler_config.async_scheduling = shape.depth > 1
    config.parallel_config.pipeline_parallel_size = max(1, shape.depth - 1)
    config.cache_config.num_gpu_blocks = shape.num_blocks
    if shape.num_host_blocks is not None:
        config.kv_transfer_config = swap_config(num_host_blocks=shape.num_host_blocks)
    return config


@cache
def _model_config(max_model_len: int) -> ModelConfig:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_8B))
        return ModelConfig(model=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=max_model_len)


def _kv_spec(block_size: int) -> FullAttentionSpec:
    return FullAttentionSpec(
        block_size=block_size,
        num_kv_heads=LLAMA_8B["num_key_value_heads"],
        head_size=LLAMA_8B["head_dim"],
        dtype=torch.bfloat16,
    )
