"""Reports go out: what a step did, who is gone, and what the engine core goes by when it decides to sleep."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.feedback import STATS_KEY, StepKind
from stream2llm_rag.engine.scheduler.losses import Losses


class Reports(Losses):
    """Answers the engine core."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Note what the finished step computed, and who had waited for it; then let vLLM take the output."""
        ended = self._clock()
        started = self._step_started.pop(id(scheduler_output), ended)
        self._num_steps_ended += 1
        self._ranking.saw_step(scheduler_output.total_num_scheduled_tokens, ended - started)
        for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            if stream.last_step != self._num_steps_ended - 1:  # else it ran in the step before, too
                self._note_rest(stream, started)
            stream.last_step, stream.since, stream.has_work = self._num_steps_ended, ended, request_id not in self._idle
            if stream.request.num_output_tokens == 0 or num_tokens > 1:  # prefill, not decode
                self._feedback.record(request_id, StepKind.COMPUTED, num_tokens, started, ended)
        return super().update_from_output(scheduler_output, model_runner_output)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's statistics with our records beside them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            self._refresh_levels()
            stats.kv_connector_stats = {**(stats.kv_connector_stats or {}), STATS_KEY: self._feedback.drain()}
        return stats

    def _update_waiting_for_remote_kv(self, request: Request) -> None:
        """Note how much of the prompt has come from another engine."""
        has_failed = request.request_id in self.failed_recving_kv_req_ids
        super()._update_waiting_for_remote_kv(request)
        stats = request.prefill_stats
        if stats is not None:
            num_tokens = stats.num_external_cached_tokens
            if has_failed:
                num_tokens = max(0, request.num_computed_tokens - stats.num_local_cached_tokens)
            self._feedback.record(request.request_id, StepKind.RECEIVED, num_tokens, self._clock())

    def _refresh_levels(self) -> None:
        counters = self._feedback.counters
        counters.num_partial = self._num_partial
        counters.num_complete = len(self.requests) - self._num_partial
        counters.num_running = len(self.running)
        counters.num_waiting = len(self.kv_holding_waiting) + len(self.waiting)
        counters.num_idle = len(self._idle)
        pool = self.kv_cache_manager.block_pool
        if self._swap is not None:
            counters.num_host_slots = self._swap.books.num_slots
            counters.num_used_host_slots = self._swap.books.num_used_slots
        counters.num_used_blocks = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one is the null block

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._forget_idle(request)
        self._loaded.discard(request.request_id)
        stream = self._streams.pop(request.request_id, None)
        if stream is not None:
            self._num_partial -= stream.partial
            self._ranking.saw_end(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests, the idle ones among the latter."""
        num_running, num_waiting = super().get_request_counts()
        return num_running, num_waiting + len(self._idle)

    def get_num_unfinished_requests(self) -> int:
        """Requests that a step could advance. Idle ones are not among them, else the engine core would spin."""
        num_unfinished = super().get_num_unfinished_requests()
        if self._pause_state != PauseState.UNPAUSED:
            return num_unfinished
        num_active = num_unfinished - len(self._idle)
        # Before all sleep the lapsed ones are asked once more: what the others computed may be a prefix of theirs.
        asks = bool(self._lapsed) and not (num_active or self._was_refused_at_rest)
        return num_active + (asks or self._has_room_for_lapsed())

    def reset_prefix_cache(self, reset_running_requests: bool = False, *args: Any, **kwargs: Any) -> bool:
        """As in vLLM, host memory included; with ``reset_running_requests`` streams that wait or idle give their KV up too."""
        if reset_running_requests:
            for request in [r for r in (*self._idle.values(), *self.kv_holding_waiting) if self._holds_kv_blocks(r)]:
                if request.status != RequestStatus.WAITING_FOR_REMOTE_KVS:
                    self._evict(request)
        try:
            return bool(super().reset_prefix_cache(reset_running_requests, *args, **kwargs))
        finally:  # vLLM raises where requests wait for KV from elsewhere, and the old KV must not come back
            if self._swap is not None:
                self._swap.books.drop_all()
