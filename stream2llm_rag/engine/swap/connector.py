"""The KV connector that carries copies to the workers: vLLM loads it, in the scheduler's process and in every worker.

The scheduler's end has the books. What they hold and when it comes back is decided in
:mod:`stream2llm_rag.engine.scheduler.swapping` and not asked for by vLLM, which asks a connector only for requests that have no
KV at all: a victim may have kept its front. The worker's end makes the copies first thing in each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector, MultiKVConnectorMetadata

from stream2llm_rag.engine.cost_model import CostModel
from stream2llm_rag.engine.fits import load_costs
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.engine.swap.books import HostBooks
from stream2llm_rag.engine.swap.choice import make_cost
from stream2llm_rag.engine.swap.copies import Copier, kv_regions, make_copier
from stream2llm_rag.engine.swap.metadata import SwapMetadata, SwapTimes

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

_GIB = 1 << 30
_MAX_UNTIMED_STEPS = 64


def swap_config(**size: float) -> KVTransferConfig:
    """What makes vLLM load the connector. ``size`` is ``host_kv_gib=`` or ``num_host_blocks=``.

    A producer: for a consumer vLLM would leave blocks of preempted requests unused until steps in flight have ended, as copies
    in may not be ordered behind them (``Scheduler.defer_block_free``). Ours are.
    """
    return KVTransferConfig(
        kv_connector=SwapConnector.__name__,
        kv_connector_module_path=__name__,
        kv_role="kv_producer",
        kv_connector_extra_config=dict(size),
    )


class SwapConnector(KVConnectorBase_V1, SupportsHMA):
    """Host memory for the KV of preempted requests: best effort, as what it has not got is computed again."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        block_bytes = _block_bytes(vllm_config, kv_cache_config)
        num_ranks = vllm_config.parallel_config.tensor_parallel_size
        self._num_slots = _num_slots(vllm_config.kv_transfer_config, block_bytes * num_ranks)
        if role is KVConnectorRole.SCHEDULER:
            block_size = vllm_config.cache_config.block_size
            size = vllm_config.kv_transfer_config.kv_connector_extra_config
            stored = load_costs(vllm_config) if "host_kv_gib" in size else None  # blocks are counted out for other machines
            preempt, scheduler = CoreSettings.from_environment().preempt, vllm_config.scheduler_config
            budget = scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens  # as in Scheduler.__init__
            self.cost: CostModel = make_cost(preempt, block_size, block_bytes, stored, budget)
            # The cost model may be replaced: ask for the one that is there.
            self.books = HostBooks(self._num_slots, block_size, lambda num, context: self.cost.recompute_s(num, context))
            self._step = 0
            self._items: dict[int, list[tuple[int, int]]] = {}
        self._copier: Copier | None = None

    @property
    def requires_kv_delivery(self) -> bool:
        """What is not kept can be computed again."""
        return False

    # ------------------------------------------------------------------ the scheduler's end

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """None: what is held has been loaded before vLLM asks."""
        return 0, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Nothing to do, as above."""

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SwapMetadata:
        """Close the books on a step."""
        metadata = SwapMetadata(self._step, self.books.take_copies())
        if len(self._items) < _MAX_UNTIMED_STEPS:
            self._items[self._step] = _items(scheduler_output)
        self._step += 1
        return metadata

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Learn from what steps and copies took."""
        times = connector_output.kv_connector_worker_meta
        if not isinstance(times, SwapTimes):
            return
        for (_, way), (num_blocks, seconds) in times.copies.items():
            self.cost.saw_copy(way, num_blocks, seconds)
        for step, seconds in times.forwards.items():
            items = self._items.pop(step, None)
            if items:
                self.cost.saw_step(items, seconds)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Free its slots at once."""
        self.books.drop(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """Forget all that is held."""
        self.books.drop_all()
        return True

    # ------------------------------------------------------------------ a worker's end

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take as much host memory as the books have slots."""
        self._copier = make_copier(kv_regions(kv_caches, self._kv_cache_config), self._num_slots)

    def handle_preemptions(self, kv_connector_metadata: SwapMetadata) -> None:
        """Make the step's copies: before vLLM changes anything, in either model runner."""
        assert self._copier is not None
        self._copier.begin(kv_connector_metadata)

    def wait_for_save(self) -> None:
        """The step's forward pass is over, or on a GPU handed over."""
        assert self._copier is not None
        self._copier.end()

    def build_connector_worker_meta(self) -> SwapTimes | None:
        """What took how long."""
        assert self._copier is not None
        return self._copier.take_times() or None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing to do: copies in were made with the copies out."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save: only what a request gives up is."""


def swap_connector_in(connector: Any) -> SwapConnector | None:
    """Ours, alone or beside another one."""
    parts = connector.sub_connectors if isinstance(connector, MultiConnector) else [connector]
    return next((part for part in parts if isinstance(part, SwapConnector)), None)


def swap_metadata_in(metadata: Any) -> SwapMetadata:
    """That of our connector, alone or beside another one."""
    parts = metadata.metadata if isinstance(metadata, MultiKVConnectorMetadata) else [metadata]
    return next(part for part in parts if isinstance(part, SwapMetadata))


def _block_bytes(config: VllmConfig, kv_cache_config: KVCacheConfig) -> int:
    """Of one block, the layers of all stages together, on one tensor-parallel rank: the same number in every process."""
    [group, *_] = kv_cache_config.kv_cache_groups
    return int(group.kv_cache_spec.page_size_bytes * config.model_config.get_total_num_hidden_layers())


def _num_slots(config: KVTransferConfig, block_bytes: int) -> int:
    size = config.kv_connector_extra_config
    return int(size["num_host_blocks"] if "num_host_blocks" in size else size["host_kv_gib"] * _GIB // block_bytes)


def _items(scheduler_output: SchedulerOutput) -> list[tuple[int, int]]:
    """Of each request that the step computes: new tokens, and tokens before them."""
    cached = scheduler_output.scheduled_cached_reqs
    before = {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
    before.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return [(num, before.get(request_id, 0)) for request_id, num in scheduler_output.num_scheduled_tokens.items()]
