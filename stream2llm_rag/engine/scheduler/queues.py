"""Where each request waits: in vLLM's queues, or with our idle ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.scheduler.state import NO_ROOM, SchedulerState


class Queues(SchedulerState):
    """Each live request is in one queue at any time."""

    def _detach(self, request: Request) -> None:
        """Take the request out of whichever queue it is in."""
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
        elif not self._forget_idle(request):
            self.waiting.remove_requests([request])
            self.kv_holding_waiting.remove_requests([request])
            self.deferred_waiting.discard(request)

    def _place(self, request: Request) -> None:
        """Put a request that is in no queue where it belongs."""
        stream = self._streams.get(request.request_id)
        is_idle = stream is not None and stream.partial and (stream.lapsed or self._num_pending(request) <= 0)
        if stream is not None and not request.num_in_flight_tokens:  # else it had work, and its step is still to be noted
            stream.has_work = not is_idle
        if is_idle:
            self._inflight_prefills.discard(request)
            self._idle[request.request_id] = request
            if self._num_pending(request) > 0:
                self._lapsed[request.request_id] = request
                self._refused_room, self._was_refused_at_rest = NO_ROOM, False
            self._count_idle(request, 1)
        else:
            self._enqueue_waiting_request(request)

    def _forget_idle(self, request: Request) -> bool:
        """Take the request out of the idle ones, if it is one."""
        if self._idle.pop(request.request_id, None) is None:
            return False
        self._lapsed.pop(request.request_id, None)
        self._count_idle(request, -1)
        return True

    def _count_idle(self, request: Request, sign: int) -> None:
        """Keep the sums over idle requests up to date: each step needs them, and there may be thousands."""
        self._num_idle_slots += sign * self._holds_kv_blocks(request)
        self._feedback.counters.num_idle_blocks += sign * self._num_blocks(request)

    def _split_waiting(self) -> tuple[list[Request], list[Request]]:
        """Waiting requests that vLLM holds back for reasons of its own, and the others."""
        blocked: list[Request] = []
        ready: list[Request] = []
        for queue in (self.kv_holding_waiting, self.waiting):
            for request in queue:
                (blocked if self._is_held_back(request) else ready).append(request)
        return blocked, ready

    def _reset_queues(self) -> None:
        self.waiting = create_request_queue(self.policy)
        self.kv_holding_waiting = create_request_queue(self.policy)

    def _collect(self, held: Iterable[Request]) -> None:
        """Put the held requests back, and take out those that have become idle."""
        left = [*self.kv_holding_waiting, *self.waiting]
        if left:
            self._reset_queues()
        for request in held:
            if request.status == RequestStatus.RUNNING and not self._has_lapsed(request):
                self.running.append(request)
            else:
                left.append(request)
        if self._num_partial > len(self._idle):
            self.running, idle = _partition(self._has_become_idle, self.running)
            left += idle
        for request in left:
            if request.status == RequestStatus.RUNNING:
                request.status = RequestStatus.WAITING
            self._place(request)

    def _has_become_idle(self, request: Request) -> bool:
        stream = self._streams.get(request.request_id)
        return stream is not None and stream.partial and self._num_pending(request) <= 0

    def _let_lapse(self, refused: Iterable[str]) -> None:
        """Let partial requests that may displace nobody now wait among the lapsed ones, beside which the core can sleep."""
        for request_id in refused:
            stream = self._streams.get(request_id)
            if stream is not None and stream.partial:
                stream.lapsed, stream.live = True, None


def _partition(holds: Callable[[Request], bool], requests: Iterable[Request]) -> tuple[list[Request], list[Request]]:
    """Those for which ``holds`` is false, and those for which it is true, in their order."""
    parts: tuple[list[Request], list[Request]] = [], []
    for request in requests:
        parts[holds(request)].append(request)
    return parts
