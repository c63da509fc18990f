"""The busy loop of vLLM's engine core, without an engine: when it schedules a step, and when it waits for one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vllm.v1.outputs import ModelRunnerOutput

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

StepT = TypeVar("StepT")


class CoreLoop(ABC, Generic[StepT]):
    """``EngineCore.step_with_batch_queue`` (vllm/v1/engine/core.py), which with ``depth`` 1 is ``EngineCore.step``.

    A step is scheduled as long as fewer than ``depth`` are in flight; only then does the loop wait for the oldest one.
    """

    def __init__(self, scheduler: Any, depth: int) -> None:
        self.scheduler = scheduler
        self._depth = depth
        self.in_flight: deque[StepT] = deque()

    @property
    def has_work(self) -> bool:
        """Whether a turn would do anything."""
        return bool(self.in_flight or self.scheduler.has_requests())

    def turn(self) -> None:
        """Schedule a step, or take the output of the oldest one, or both."""
        if self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self.dispatch(output)
            is_full = len(self.in_flight) >= self._depth
            if not is_full and (output.total_num_scheduled_tokens or self.scheduler.has_requests()):
                return
        if self.in_flight:
            self.take_output(self.in_flight.popleft())

    @abstractmethod
    def dispatch(self, output: SchedulerOutput) -> None:
        """Give a scheduled step, which may have no tokens, to the worker, and put it behind those in flight."""

    @abstractmethod
    def take_output(self, step: StepT) -> None:
        """Wait for the step's end and give its output to the scheduler."""


def runner_output(output: SchedulerOutput, sampled: Mapping[str, int]) -> ModelRunnerOutput:
    """What a model runner returns for the step: of each scheduled request the token that it sampled, if it did."""
    ids = list(output.num_scheduled_tokens)
    tokens = [[sampled[request_id]] if request_id in sampled else [] for request_id in ids]
    return ModelRunnerOutput(req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=tokens)
