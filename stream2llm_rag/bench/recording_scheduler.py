"""vLLM's own scheduler, which notes what it does: the same decisions, and records of them as our scheduler makes.

Without it a benchmark could not tell how much stock vLLM computes twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from stream2llm_rag.engine.feedback import STATS_KEY, CoreFeedback, StepKind

if TYPE_CHECKING:
    from vllm.v1.request import Request

BY_ASYNC = {False: f"{__name__}.RecordingScheduler", True: f"{__name__}.AsyncRecordingScheduler"}
"""The name of the class by whether scheduling is asynchronous, for vLLM's ``scheduler_cls``."""


class _RecordingMixin(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._feedback = CoreFeedback()
        self._num_held: dict[str, int] = {}
        self._step_started: dict[int, float] = {}

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM does; note when the step began, and what the prefix cache gave."""
        started = time.monotonic()
        output = super().schedule(*args, **kwargs)
        self._step_started[id(output)] = started
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            num_computed = self.requests[request_id].num_computed_tokens
            num_cached = num_computed - num_tokens - self._num_held.get(request_id, 0)
            if num_cached > 0:
                self._feedback.record(request_id, StepKind.RESUMED, num_cached, started)
            self._num_held[request_id] = num_computed
        self._feedback.counters.num_steps += bool(output.num_scheduled_tokens)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As vLLM does; note what the step computed."""
        ended = time.monotonic()
        started = self._step_started.pop(id(scheduler_output), ended)
        for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            request = self.requests.get(request_id)  # None where it was aborted while the step ran
            if request is None or request.num_output_tokens == 0 or num_tokens > 1:  # prefill, not decode
                self._feedback.record(request_id, StepKind.COMPUTED, num_tokens, started, ended)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._feedback.counters.num_preemptions += 1
        self._feedback.record(request.request_id, StepKind.EVICTED, request.num_computed_tokens, time.monotonic())
        self._num_held.pop(request.request_id, None)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._num_held.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's statistics with our records beside them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.kv_connector_stats = {**(stats.kv_connector_stats or {}), STATS_KEY: self._feedback.drain()}
        return stats


class RecordingScheduler(_RecordingMixin):
    """For synchronous scheduling."""


class AsyncRecordingScheduler(_RecordingMixin, AsyncScheduler):
    """For asynchronous scheduling."""
