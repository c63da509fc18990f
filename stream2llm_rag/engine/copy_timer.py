"""What calibration asks of vLLM's workers: loaded into them by ``worker_extension_cls``, called by ``collective_rpc``.

vLLM merges the class into its worker's, so that its methods find the worker's attributes in ``self``, and its names must not be
names of the worker's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from stream2llm_rag.engine.cost_model import Direction
from stream2llm_rag.engine.fits import FitKey
from stream2llm_rag.engine.swap.books import Copy, StepCopies
from stream2llm_rag.engine.swap.copies import Copier, kv_regions, make_copier
from stream2llm_rag.engine.swap.metadata import SwapMetadata

_MAX_HOST_BYTES = 1 << 30
_NUM_REPETITIONS = 5


class CopyTimer:
    """Of one worker."""

    model_runner: Any
    vllm_config: Any

    def s2l_describe(self) -> dict[str, Any]:
        """The key that the costs belong to, and the blocks of the KV cache."""
        return {"key": asdict(FitKey.of(self.vllm_config)), "num_blocks": int(self.model_runner.kv_cache_config.num_blocks)}

    def s2l_time_copies(self, max_blocks: int, num_rounds: int, seed: int) -> list[tuple[str, int, float]]:
        """(direction, blocks, seconds) of copies of up to ``max_blocks``, of half as many, and so on, of random blocks.

        Each is the median of a few repetitions. The content of the KV cache is lost: its prefix cache has to be reset.
        """
        runner = self.model_runner
        layers = self.vllm_config.compilation_config.static_forward_context
        caches = {name: layer.kv_cache for name, layer in layers.items() if isinstance(layer.kv_cache, torch.Tensor)}
        regions = kv_regions(caches, runner.kv_cache_config)
        num_blocks = runner.kv_cache_config.num_blocks
        block_bytes = sum(region.shape[1] * region.element_size() for region in regions)
        most = max(1, min(max_blocks, num_blocks - 1, _MAX_HOST_BYTES // block_bytes))
        bench = _Bench(make_copier(regions, most), num_blocks, most, random.Random(seed))  # noqa: S311 - which blocks, no secret
        sizes = [most >> shift for shift in range(most.bit_length())]
        with torch.inference_mode():
            bench.time_all(sizes)  # warms up
            return [timing for _ in range(num_rounds) for timing in bench.time_all(sizes)]


@dataclass(frozen=True, slots=True)
class _Bench:
    """Times copies between random blocks and random slots: a victim's blocks were written long ago, and are in no cache."""

    copier: Copier
    num_blocks: int
    num_slots: int
    dice: random.Random

    def time_all(self, sizes: Sequence[int]) -> list[tuple[str, int, float]]:
        """Out and in, of each size, in random order."""
        cases = [(direction, size) for direction in Direction for size in sizes]
        return [
            (str(direction), size, median(self._seconds(direction, size) for _ in range(_NUM_REPETITIONS)))
            for direction, size in self.dice.sample(cases, len(cases))
        ]

    def _seconds(self, direction: Direction, size: int) -> float:
        blocks, slots = self.dice.sample(range(1, self.num_blocks), size), self.dice.sample(range(self.num_slots), size)
        copies = [Copy(block, slot) for block, slot in zip(blocks, slots, strict=True)]
        step = StepCopies([], copies, []) if direction is Direction.OUT else StepCopies([], [], copies)
        self.copier.begin(SwapMetadata(0, step))
        self.copier.end()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.copier.take_times().copies[0, direction][1]
