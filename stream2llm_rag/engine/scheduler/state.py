"""What the scheduler knows beyond vLLM's, and what it can say of a request at once."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.feedback import CoreFeedback, StepKind
from stream2llm_rag.engine.planner import Plan
from stream2llm_rag.engine.policy import LiveRequest, make_policy
from stream2llm_rag.engine.settings import CoreSettings

NO_ROOM = (-1, -1)


@dataclass(slots=True)
class Stream:
    """What we know of a streaming request beyond vLLM's ``Request``."""

    request: Request
    partial: bool
    last_chunk_at: float
    num_remaining: int | None
    num_hit: int = 0
    """Tokens at the front whose KV came from the prefix cache."""
    was_evicted: bool = False
    """It has no KV since an eviction."""
    lapsed: bool = False
    """It was evicted while it had nothing new to compute."""
    has_work: bool = True
    """Else it is idle."""
    last_step: int = -1
    """The last step that ran it; before the first, and since the last operation or loss of KV, none."""
    since: float = 0.0
    """From then on it has waited, or idled, unless it runs."""
    live: LiveRequest | None = None
    """What the planner sees of it, while it is partial and nothing has changed: there may be thousands that just wait.

    What losing it costs is as of then, though costs are learned all the time.
    """
    held_end: int | None = None
    """Where what host memory held of it ended when ``live`` was made. That changes by itself, when others need the room."""


class SchedulerState(Scheduler):
    """Attributes of all mixins, and lookups that change nothing."""

    running: list[Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = CoreSettings.from_environment()
        self._secret = settings.secret
        self._ranking = make_policy(settings.policy)
        self._chaos = settings.chaos
        self._dice = random.Random(0)  # noqa: S311 - for tests, not for secrets
        self._clock = time.monotonic
        self._wall = time.time  # that of ``Request.arrival_time``
        self._streams: dict[str, Stream] = {}
        self._idle: dict[str, Request] = {}
        self._lapsed: dict[str, Request] = {}  # those of the idle ones that have something to compute
        self._refused_room = NO_ROOM  # blocks and slots that did not suffice for any lapsed stream: only more may
        self._was_refused_at_rest = False  # by a plan in which nobody else ran either
        self._num_idle_slots = 0
        self._num_partial = 0
        self._debt = 0
        self._must_plan = False
        self._plan: Plan | None = None
        self._feedback = CoreFeedback()
        self._step_started: dict[int, float] = {}
        self._last_started = self._clock()
        self._num_steps_ended = 0
        # The planner makes the same reservation for complete requests; partial ones grow and are admitted chunk by chunk.
        self.scheduler_reserve_full_isl = False
        self._first_tables = self.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks
        # It also decides what stays free: vLLM would refuse what it grants.
        self.kv_cache_manager.watermark_blocks = 0

    def _num_pending(self, request: Request) -> int:
        """Tokens that may be computed now."""
        stream = self._streams.get(request.request_id)
        if stream is not None and stream.partial:
            return request.num_tokens - 1 - request.num_computed_tokens
        return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens

    def _blocks_to_add(self, request: Request, num_tokens: int) -> int:
        """Blocks that the request needs beyond those in its table to compute ``num_tokens`` more."""
        num_slot_tokens = request.num_computed_tokens + num_tokens + self.num_lookahead_tokens
        return max(0, -(-num_slot_tokens // self.block_size) - self._num_blocks(request))

    def _has_work(self) -> bool:
        """Tell whether a step could advance somebody other than a lapsed stream."""
        return bool(self.running or self.kv_holding_waiting or self.waiting)

    def _is_held_back(self, request: Request) -> bool:
        if request.status == RequestStatus.RUNNING:
            return False
        awaits_output = request.num_stale_output_tokens > 0 and not request.drop_stale_output
        return awaits_output or (request.status != RequestStatus.WAITING and self._is_blocked_waiting_status(request.status))

    def _has_lapsed(self, request: Request) -> bool:
        stream = self._streams.get(request.request_id)
        return stream is not None and stream.lapsed

    @property
    def _weighs(self) -> bool:
        """Whether the policy lets a partial request displace what is worth less, whoever holds it."""
        return self._ranking.rules.displaces is not None

    def _room(self) -> tuple[int, int]:
        """Free blocks and slots."""
        num_slots = self._num_idle_slots + len(self.running) + len(self.kv_holding_waiting)
        return self.kv_cache_manager.block_pool.get_num_free_blocks(), self.max_num_active_reqs - num_slots

    def _has_room_for_lapsed(self) -> bool:
        """Tell whether there is more room than when a plan last left lapsed streams out."""
        return bool(self._lapsed) and any(now > then for now, then in zip(self._room(), self._refused_room, strict=True))

    def _num_blocks(self, request: Request) -> int:
        """Blocks in the request's table: that of the first KV group, which is the only one but for hybrid models."""
        return len(self._first_tables.get(request.request_id, ()))

    def _note_rest(self, stream: Stream, until: float) -> None:
        if until > stream.since:
            kind, request = StepKind.WAITED if stream.has_work else StepKind.IDLE, stream.request
            self._feedback.record(request.request_id, kind, request.num_computed_tokens, stream.since, until)
            stream.since = until
