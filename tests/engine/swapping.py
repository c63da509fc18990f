"""A connector whose host memory and decisions a test can change while the engine runs, by requests that it sends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.swap.choice import RANDOM, make_cost
from stream2llm_rag.engine.swap.connector import SwapConnector, swap_config

from .cases import COMMON, GREEDY, TIGHT, collect

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from stream2llm_rag.engine.swap.metadata import SwapMetadata

KEY = "change_swap"
NUM_HOST_BLOCKS = 200  # more than all cases at once can lose


@dataclass(frozen=True)
class Regime:
    """``num_slots`` may be used; with ``rotates`` every copy in reads its neighbour's slot."""

    num_slots: int = NUM_HOST_BLOCKS
    preempt: str = Preemption.SWAP
    rotates: bool = False


class VaryingSwapConnector(SwapConnector):
    """As ours, under the regime of the last request that named one."""

    _regime = Regime()

    def on_new_request(self, request: Request) -> None:
        changes = (request.sampling_params.extra_args or {}).get(KEY)
        if changes is not None:
            self._regime = Regime(**changes)
            self.books.drop_all()
            self.books._free = list(range(self._regime.num_slots))
            self.books.num_slots = self._regime.num_slots
            self.cost = make_cost(self._regime.preempt, self._vllm_config.cache_config.block_size, 2**20)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SwapMetadata:
        metadata = super().build_connector_meta(scheduler_output)
        ins = metadata.copies.ins
        if self._regime.rotates:
            ins[:] = [replace(one, slot=other.slot) for one, other in zip(ins, [*ins[1:], *ins[:1]], strict=True)]
        return metadata


def swapping_engine(model: Path) -> Stream2LLMEngine:
    """A tight engine that evicts at random, as :func:`chaotic_engine`, with host memory."""
    engine = Stream2LLMEngine(model, policy="tests.engine.rotating:Rotating", host_kv_gib=1, **TIGHT, **COMMON)
    engine._settings = replace(engine._settings, chaos=0.25, preempt=RANDOM)
    config = swap_config(num_host_blocks=NUM_HOST_BLOCKS)
    config.kv_connector, config.kv_connector_module_path = VaryingSwapConnector.__name__, __name__
    engine._connector = lambda: config  # type: ignore[method-assign]
    return engine


async def rule(engine: Stream2LLMEngine, regime: Regime) -> None:
    """Change the regime. Nothing else may run meanwhile."""
    from vllm import SamplingParams

    changes: dict[str, Any] = {"num_slots": regime.num_slots, "preempt": str(regime.preempt), "rotates": regime.rotates}
    await collect(engine.generate([5, 6, 7], SamplingParams(**{**GREEDY, "max_tokens": 2}, extra_args={KEY: changes})))
