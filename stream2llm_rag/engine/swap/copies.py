"""Copies between blocks of the device's KV cache and host slots, made in a worker.

On the CPU platform they are plain copies. On CUDA they run on a stream of their own, ordered by events: before the forward pass
that overwrites or reads the blocks, and behind the passes that wrote them. The CUDA part has not been run
yet.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from stream2llm_rag.engine.cost_model import Direction
from stream2llm_rag.engine.swap.books import Copy
from stream2llm_rag.engine.swap.metadata import SwapMetadata, SwapTimes

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig

_WORD_BYTES = 8


def kv_regions(kv_caches: Mapping[str, torch.Tensor], kv_cache_config: KVCacheConfig) -> list[torch.Tensor]:
    """The memory of the KV cache as tensors of shape [num_blocks, words of 8 bytes]: row ``b`` of all is block ``b``.

    Layers lie one behind the other, or each block holds all of them (``KVCacheTensor`` in vllm/v1/kv_cache_interface.py).
    """
    regions: dict[int, torch.Tensor] = {}
    for placed in kv_cache_config.kv_cache_tensors:
        name = next((name for name in placed.layers if name in kv_caches), None)
        if name is None:
            continue
        cache, num_bytes = kv_caches[name], kv_cache_config.num_blocks * placed.block_stride
        memory = torch.empty(0, dtype=torch.int8, device=cache.device).set_(cache.untyped_storage())
        if placed.layer_stride >= num_bytes:
            memory = memory[placed.offset : placed.offset + len(placed.layers) * placed.layer_stride]
        else:
            memory = memory[:num_bytes]
        for region in memory.view(-1, kv_cache_config.num_blocks, placed.block_stride):
            regions.setdefault(region.data_ptr(), region.view(torch.int64))
    return list(regions.values())


class Copier(ABC):
    """Makes the copies of each step, and times them and the forward passes."""

    def __init__(self, regions: Sequence[torch.Tensor], num_slots: int) -> None:
        self._regions = list(regions)
        on_device = self._regions[0].is_cuda
        self._slots = [
            torch.empty((num_slots, region.shape[1]), dtype=region.dtype, pin_memory=on_device) for region in self._regions
        ]

    @abstractmethod
    def begin(self, metadata: SwapMetadata) -> None:
        """Make the step's copies, before its forward pass, which begins now."""

    @abstractmethod
    def end(self) -> None:
        """The forward pass has been handed over."""

    @abstractmethod
    def take_times(self) -> SwapTimes:
        """What is known since the last call."""


class HostCopier(Copier):
    """On the CPU platform, where the device's memory is the host's."""

    def __init__(self, regions: Sequence[torch.Tensor], num_slots: int) -> None:
        super().__init__(regions, num_slots)
        self._times = SwapTimes()
        self._step = 0
        self._started = 0.0

    def begin(self, metadata: SwapMetadata) -> None:
        """Copy, and start the clock."""
        self._step = metadata.step
        copies = metadata.copies
        outs, ins = [*copies.early_outs, *copies.outs], copies.ins
        self._copy(Direction.OUT, self._regions, self._slots, [c.block for c in outs], [c.slot for c in outs])
        self._copy(Direction.IN, self._slots, self._regions, [c.slot for c in ins], [c.block for c in ins])
        self._started = time.perf_counter()

    def end(self) -> None:
        """Stop the clock."""
        self._times.forwards[self._step] = time.perf_counter() - self._started

    def take_times(self) -> SwapTimes:
        """Those of the step that has just ended."""
        taken, self._times = self._times, SwapTimes()
        return taken

    def _copy(
        self, way: Direction, sources: list[torch.Tensor], targets: list[torch.Tensor], froms: list[int], tos: list[int]
    ) -> None:
        if not froms:
            return
        started = time.perf_counter()
        for source, target in zip(sources, targets, strict=True):
            for row, target_row in zip(froms, tos, strict=True):  # all at once would need fresh memory for them, in between
                target[target_row].copy_(source[row])
        self._times.copies[self._step, way] = (len(froms), time.perf_counter() - started)


class CudaCopier(Copier):
    """On a stream of its own.

    One stream for both directions: a host slot is written and read in the order in which the scheduler gave it away. What was
    computed by steps whose output the scheduler has (``early_outs``) is copied out while the step before still runs; the other
    copies wait for it, and the forward pass waits for all of them.
    """

    def __init__(self, regions: Sequence[torch.Tensor], num_slots: int) -> None:
        super().__init__(regions, num_slots)
        self._stream = torch.cuda.Stream(device=self._regions[0].device)
        self._step = 0
        self._began: Any = None
        self._timed: deque[tuple[tuple[int, Direction | None], int, Any, Any]] = deque()

    def begin(self, metadata: SwapMetadata) -> None:
        """Submit the copies, and have the forward pass wait for them."""
        self._step = metadata.step
        current = torch.cuda.current_stream()
        copies = metadata.copies
        if copies.early_outs or copies.outs or copies.ins:
            self._submit(Direction.OUT, copies.early_outs)
            self._stream.wait_stream(current)
            self._submit(Direction.OUT, copies.outs)
            self._submit(Direction.IN, copies.ins)
            current.wait_stream(self._stream)
        self._began = _mark(current)

    def end(self) -> None:
        """Mark the end of what was submitted."""
        if self._began is not None:
            self._timed.append(((self._step, None), 0, self._began, _mark(torch.cuda.current_stream())))
            self._began = None

    def take_times(self) -> SwapTimes:
        """Those of what has ended by now: a GPU runs behind."""
        times = SwapTimes()
        while self._timed and self._timed[0][3].query():
            (step, way), num_blocks, began, ended = self._timed.popleft()
            seconds = began.elapsed_time(ended) / 1e3
            if way is None:
                times.forwards[step] = seconds
            else:
                known_blocks, known_s = times.copies.get((step, way), (0, 0.0))
                times.copies[step, way] = (known_blocks + num_blocks, known_s + seconds)
        return times

    def _submit(self, way: Direction, copies: list[Copy]) -> None:
        """One call of the driver for all layers of all blocks."""
        if not copies:
            return
        from vllm import _custom_ops as ops

        blocks, slots = torch.tensor([c.block for c in copies]), torch.tensor([c.slot for c in copies])
        on_device = torch.cat([part.data_ptr() + blocks * (part.shape[1] * _WORD_BYTES) for part in self._regions])
        on_host = torch.cat([part.data_ptr() + slots * (part.shape[1] * _WORD_BYTES) for part in self._slots])
        sizes = torch.cat([torch.full_like(blocks, part.shape[1] * _WORD_BYTES) for part in self._regions])
        froms, tos = (on_device, on_host) if way is Direction.OUT else (on_host, on_device)
        with torch.cuda.stream(self._stream):
            began = _mark(self._stream)
            ops.swap_blocks_batch(froms, tos, sizes)
            self._timed.append(((self._step, way), len(copies), began, _mark(self._stream)))


def make_copier(regions: Sequence[torch.Tensor], num_slots: int) -> Copier:
    """The one for the memory that ``regions`` are in."""
    return (CudaCopier if regions[0].is_cuda else HostCopier)(regions, num_slots)


def _mark(stream: Any) -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event
