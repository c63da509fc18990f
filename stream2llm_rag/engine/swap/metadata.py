"""What scheduler and workers tell each other in each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from stream2llm_rag.engine.cost_model import Direction
from stream2llm_rag.engine.swap.books import StepCopies

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT", float, tuple[int, float])


@dataclass(slots=True)
class SwapMetadata(KVConnectorMetadata):
    """The copies of one step, made before its forward pass. ``step`` counts up from 0."""

    step: int
    copies: StepCopies


@dataclass(slots=True)
class SwapTimes(KVConnectorWorkerMetadata):
    """What took how long, of steps that have ended by now: in seconds, by their number, forward passes and copies.

    Copies come with their number of blocks.
    """

    forwards: dict[int, float] = field(default_factory=dict)
    copies: dict[tuple[int, Direction], tuple[int, float]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> SwapTimes:
        """Of several ranks the slowest, which the others wait for."""
        assert isinstance(other, SwapTimes)
        return SwapTimes(_slowest(self.forwards, other.forwards), _slowest(self.copies, other.copies))

    def __bool__(self) -> bool:
        return bool(self.forwards or self.copies)


def _slowest(one: Mapping[KeyT, ValueT], other: Mapping[KeyT, ValueT]) -> dict[KeyT, ValueT]:
    return {key: max(times[key] for times in (one, other) if key in times) for key in {**one, **other}}
