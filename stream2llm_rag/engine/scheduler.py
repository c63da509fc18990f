"""Phase 2 of a step: vLLM's own scheduler, shown just the requests that the plan lets run.

The only module that touches vLLM's scheduler internals. A streaming request is an ordinary ``Request`` that grows: repeated
engine-core requests of its id carry operations (:mod:`protocol`). It is computed up to its last token but one, so that it never
samples, until its finish lifts that cap. One with nothing to compute is *idle*: it keeps its blocks, sits in none of vLLM's
queues, and can be evicted. Then it has *lapsed* until its next operation: it stays idle, comes back when there is room for it,
and nobody is evicted for that, unless the policy weighs blocks against each other: else two such streams would take turns for
ever. Nothing here may raise for anything that a front end sends: an exception from ``Scheduler.add_request`` ends the core.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from vllm.sampling_params import SamplingType
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.feedback import STATS_KEY, CoreFeedback, StepKind
from stream2llm_rag.engine.ledger import BlockTable
from stream2llm_rag.engine.planner import Plan, Resources, plan
from stream2llm_rag.engine.policy import LiveRequest, make_policy
from stream2llm_rag.engine.protocol import Op, OpKind, RefusedOpError
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.token_ids import common_prefix

logger = logging.getLogger(__name__)

NO_ROOM = (-1, -1)


@dataclass(slots=True)
class _Stream:
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
    """What the planner sees of it, while it is partial and nothing has changed: there may be thousands that just wait."""


class _StreamingMixin(Scheduler):
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
        self._streams: dict[str, _Stream] = {}
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

    # ------------------------------------------------------------------ operations come in

    def add_request(self, request: Request) -> None:
        """Take a plain request, or one operation of a stream."""
        params = request.sampling_params
        op, is_forged = None, False
        try:
            op = protocol.decode(params.extra_args if params is not None else None, self._secret)
        except RefusedOpError as refusal:
            is_forged = True
            logger.debug("refused an operation for %s: %s", request.request_id, refusal)
        counters = self._feedback.counters
        counters.num_ops += op is not None
        was_taken = self._take(request, op)
        counters.num_ops_refused += is_forged or not was_taken

    def _take(self, request: Request, op: Op | None) -> bool:
        """Carry it out, unless that would touch what belongs to another: then return False. One that comes late is dropped."""
        stream = self._streams.get(request.request_id)
        if stream is not None:
            if op is None or not stream.partial or not self._fits_model(stream, op, request):
                return False
            self._apply(stream, op, request)
            return True
        known = self.requests.get(request.request_id)
        if known is not None and known.streaming_queue is None:  # vLLM asserts that ids of plain requests are unique
            return False
        if op is None:
            super().add_request(request)
        elif op.kind is OpKind.FINISH or op.opens:
            self._open(request, op)
        else:
            logger.debug("dropped %s for %s, which is gone", op.kind, request.request_id)
        return True

    def _fits_model(self, stream: _Stream, op: Op, request: Request) -> bool:
        """Lengths are checked by vLLM for each request, not for their sum; an answer needs room for a token."""
        before = stream.request.num_tokens if op.kind is OpKind.APPEND else 0
        return request.prompt_token_ids is not None and before + request.num_prompt_tokens < self.max_model_len

    def _open(self, request: Request, op: Op) -> None:
        request.resumable = False  # vLLM's own streaming would park it where it cannot be preempted
        partial = op.kind is not OpKind.FINISH
        stream = _Stream(request, partial, request.arrival_time, op.num_remaining, since=self._arrived(request))
        self._streams[request.request_id] = stream
        self._num_partial += partial
        self._tell_policy(request, op, request.arrival_time)
        super().add_request(request)
        if partial and self._num_pending(request) <= 0:
            self._detach(request)
            self._place(request)
        if not partial:
            self._feedback.record(request.request_id, StepKind.FINAL, 0, self._clock())

    def _apply(self, stream: _Stream, op: Op, chunk: Request) -> None:
        request = stream.request
        self._end_rest(stream, chunk)
        self._detach(request)
        stream.last_chunk_at = chunk.arrival_time
        stream.num_remaining = op.num_remaining
        stream.lapsed = False
        stream.live = None
        if self._weighs:
            self._refused_room = NO_ROOM  # what comes may change what everybody's blocks are worth
        before = request.num_tokens
        if op.kind is OpKind.APPEND:
            self._extend(request, chunk.prompt_token_ids)
        else:
            num_common = self._replace(stream, chunk)
            if op.kind is OpKind.UPDATE:
                self._ranking.saw_update(request.request_id, chunk.arrival_time, num_common / before)
        self._tell_policy(request, op, chunk.arrival_time)
        # The worker learns new tokens only from NewRequestData, which is what a WAITING request gets.
        request.status = RequestStatus.WAITING
        if op.kind is OpKind.FINISH:
            self._complete(stream, chunk)
        self._place(request)

    def _arrived(self, request: Request) -> float:
        """When the request came, on our clock: it may have lain in the core's queue since the last step began."""
        return max(self._last_started, self._clock() - max(0.0, self._wall() - request.arrival_time))

    def _end_rest(self, stream: _Stream, chunk: Request) -> None:
        """The stream has waited, or idled, up to ``chunk``; what comes after is noted apart."""
        if not stream.request.num_in_flight_tokens:
            self._note_rest(stream, self._arrived(chunk))
            stream.last_step = -1

    def _note_rest(self, stream: _Stream, until: float) -> None:
        if until > stream.since:
            kind, request = StepKind.WAITED if stream.has_work else StepKind.IDLE, stream.request
            self._feedback.record(request.request_id, kind, request.num_computed_tokens, stream.since, until)
            stream.since = until

    def _tell_policy(self, request: Request, op: Op, now: float) -> None:
        if op.kind is OpKind.FINISH:
            self._ranking.saw_final(request.request_id, now)
        else:
            self._ranking.saw_chunk(request.request_id, now, request.num_tokens, op.num_remaining)

    def _extend(self, request: Request, token_ids: list[int]) -> None:
        request._all_token_ids.extend(token_ids)  # in place: `all_token_ids` is a view of it
        request.prompt_token_ids = request.prompt_token_ids + token_ids  # a new list: the worker may hold the old one
        request.num_prompt_tokens = len(request.prompt_token_ids)
        request.update_block_hashes()

    def _replace(self, stream: _Stream, chunk: Request) -> int:
        """Change the prompt to the chunk's; KV of the longest common prefix, whose length is returned, stays."""
        request, token_ids = stream.request, chunk.prompt_token_ids
        common = common_prefix(request._all_token_ids, token_ids)
        before = request.num_computed_tokens
        request._all_token_ids[:] = token_ids
        request.prompt_token_ids = list(token_ids)
        request.num_prompt_tokens = len(token_ids)
        request.block_hashes = list(chunk.block_hashes)  # hashed already, in the core's input thread
        keep = min(before, common, len(token_ids) - 1)
        if keep < before:
            self._truncate(request, keep)
            stream.num_hit = min(stream.num_hit, request.num_computed_tokens)
            lost = before - request.num_computed_tokens
            self._feedback.record(request.request_id, StepKind.INVALIDATED, lost, self._clock())
        return common

    def _truncate(self, request: Request, keep: int) -> None:
        """Keep KV of at most the first ``keep`` tokens.

        A last block that is only partly kept will be written again: never one that is hashed or shared, since others may find
        or read the old content there. Freed blocks keep their hashes, for they keep their content. Where layers do not all hold
        the KV of every token (sliding windows, states), there is none to go back to: all goes.
        """
        manager, *others = self.kv_cache_manager.coordinator.single_type_managers
        if others or type(manager) is not FullAttentionManager or not self._request_blocks_can_be_freed(request):
            keep = 0
        else:
            blocks = manager.req_to_blocks[request.request_id]
            num_blocks = -(-keep // manager.block_size)
            if keep % manager.block_size and (
                blocks[num_blocks - 1].block_hash is not None or blocks[num_blocks - 1].ref_cnt > 1
            ):
                num_blocks -= 1
                keep = num_blocks * manager.block_size
        if keep == 0:
            self._free_request_blocks(request)
            self._inflight_prefills.discard(request)
            self.reset_preempted_req_ids.add(request.request_id)  # the V2 model runner gives its slot back
        else:
            tail = blocks[num_blocks:]
            del blocks[num_blocks:]
            cached = manager.num_cached_block.get(request.request_id, 0)
            manager.num_cached_block[request.request_id] = min(cached, keep // manager.block_size)
            manager.block_pool.free_blocks(reversed(tail))
        request.num_computed_tokens = keep

    def _complete(self, stream: _Stream, final: Request) -> None:
        """The request is whole: from here on it is an ordinary one, with the sampling parameters of its finish."""
        request = stream.request
        stream.partial = False
        self._num_partial -= 1
        request.sampling_params = final.sampling_params
        request.max_tokens = final.max_tokens
        request.structured_output_request = final.structured_output_request
        if final.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            request.status = final.status
        request.kv_transfer_params = final.kv_transfer_params
        request.skip_reading_prefix_cache = final.skip_reading_prefix_cache
        request.trace_headers = final.trace_headers
        request.priority = final.priority
        request.prefill_stats = PrefillStats()
        request.prefill_stats.set(
            num_prompt_tokens=request.num_prompt_tokens,
            num_local_cached_tokens=request.num_computed_tokens,
            num_external_cached_tokens=0,
        )
        if final.sampling_params.sampling_type == SamplingType.RANDOM_SEED:
            # The worker makes a seeded generator only for a request that it does not know yet (gpu_model_runner.py,
            # _update_states); one that it is told has finished it forgets, and the KV is ours.
            self.finished_req_ids.add(request.request_id)
        overlap = max(0, request.num_computed_tokens - stream.num_hit)
        self._feedback.record(request.request_id, StepKind.FINAL, overlap, self._clock())

    # ------------------------------------------------------------------ queues

    def _num_pending(self, request: Request) -> int:
        """Tokens that may be computed now."""
        stream = self._streams.get(request.request_id)
        if stream is not None and stream.partial:
            return request.num_tokens - 1 - request.num_computed_tokens
        return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens

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

    def _has_lapsed(self, request: Request) -> bool:
        stream = self._streams.get(request.request_id)
        return stream is not None and stream.lapsed

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

    def _num_blocks(self, request: Request) -> int:
        """Blocks in the request's table: that of the first KV group, which is the only one but for hybrid models."""
        return len(self._first_tables.get(request.request_id, ()))

    def _evict(self, request: Request, num_kept_blocks: int = 0) -> None:
        """Free all KV of a running, waiting or idle request, or all behind the first ``num_kept_blocks``."""
        was_idle = request.request_id in self._idle
        self._detach(request)
        before, status = request.num_computed_tokens, request.status
        counters = self._feedback.counters
        if num_kept_blocks:
            self._truncate(request, num_kept_blocks * self.block_size)
            self._disown_output(request)
            counters.num_tail_evictions += 1
        else:
            request.status = RequestStatus.RUNNING
            super()._preempt_request(request, self._clock())  # asserts RUNNING; puts it into `waiting`
            self.waiting.remove_request(request)
            counters.num_whole_evictions += 1
        # The worker knows the tokens of a running request: PREEMPTED brings it back with its output. Those of another may have
        # changed since the worker saw them: it stays what it was.
        request.status = RequestStatus.PREEMPTED if status == RequestStatus.RUNNING else status
        # It may come back in this very step: the V1 model runner then needs all its tokens (as in vLLM's `reset_prefix_cache`).
        self.prev_step_scheduled_req_ids.discard(request.request_id)
        stream = self._streams.get(request.request_id)
        if stream is not None:
            stream.lapsed |= was_idle
            self._note_loss(stream, before)
        self._place(request)

    def _disown_output(self, request: Request) -> None:
        """Let output in flight be delivered when it comes and count for nothing else, as in vLLM's ``_preempt_request``.

        Until then vLLM does not schedule the request again: it would sample the same position twice.
        """
        request.drop_stale_output &= request.num_stale_output_tokens > 0
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Note that vLLM preempts somebody on its own, when a step needs more blocks than were planned."""
        before = request.num_computed_tokens
        super()._preempt_request(request, *args, **kwargs)
        self._feedback.counters.num_preemptions += 1
        stream = self._streams.get(request.request_id)
        if stream is not None:
            self._note_loss(stream, before)

    def _note_loss(self, stream: _Stream, num_before: int) -> None:
        num_left = stream.request.num_computed_tokens
        stream.num_hit = min(stream.num_hit, num_left)
        stream.was_evicted = num_left == 0
        stream.last_step = -1
        stream.live = None
        self._feedback.record(stream.request.request_id, StepKind.EVICTED, num_before - num_left, self._clock())

    # ------------------------------------------------------------------ a step

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, evict, and let vLLM schedule what the plan lets run. Without streams this is vLLM's own ``schedule``."""
        started = self._last_started = self._clock()
        if not self._streams:
            output = super().schedule(*args, **kwargs)
        elif self._pause_state == PauseState.UNPAUSED:
            output = self._schedule_streams(*args, **kwargs)
        else:
            output = super().schedule(*args, **kwargs)
            self._collect(())  # whoever waits for the engine to rest waits for streams in `running` too
        self._step_started[id(output)] = started
        return output

    def _schedule_streams(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        self._was_refused_at_rest = False
        if self._chaos and self._dice.random() < self._chaos and self._has_work():
            self._evict_somebody()
        self._plan = None if self._everything_fits() else self._make_plan()
        held = self._carry_out(self._plan) if self._plan is not None else []
        waiting = [*self.kv_holding_waiting, *self.waiting]
        fresh = [request for request in waiting if request.num_computed_tokens == 0]
        planned = time.perf_counter()
        output = super().schedule(*args, **kwargs)
        done = time.perf_counter()
        self._note_hits(fresh, output.num_scheduled_tokens)
        was_refused = self._note_refusals(waiting, output.num_scheduled_tokens)
        made, self._plan = self._plan, None
        if made is not None and self._weighs:
            self._let_lapse(made.refused)
        self._collect(held)
        if made is not None and not was_refused:
            self._note_room(made)
        counters = self._feedback.counters
        counters.num_steps += 1
        counters.planning_s += planned - started + time.perf_counter() - done
        return output

    def _let_lapse(self, refused: Iterable[str]) -> None:
        """Let partial requests that may displace nobody now wait among the lapsed ones, beside which the core can sleep."""
        for request_id in refused:
            stream = self._streams.get(request_id)
            if stream is not None and stream.partial:
                stream.lapsed = True

    def _note_room(self, made: Plan) -> None:
        """Remember the room that was left, if nothing but room was short for all lapsed streams that were left out."""
        has_tokens_left = sum(made.grants.values()) < self.max_num_scheduled_tokens
        knew_them = not any(victim.request_id in self._lapsed for victim in made.victims)
        if has_tokens_left and knew_them and not any(map(self._is_held_back, self._lapsed.values())):
            self._refused_room = made.num_free_blocks, made.num_free_slots
            self._was_refused_at_rest = not made.grants

    def _everything_fits(self) -> bool:
        """Tell whether all requests can run to their targets in this step, so that nobody need be asked who comes first.

        In most steps this is the whole planning. Prefix-cache hits are left out: they could only lower the sum.
        """
        if self._must_plan or self._has_room_for_lapsed() or (self._lapsed and not self._has_work()):
            return False
        if self._ranking.rules.partials_wait and self._num_partial > len(self._idle):
            return False
        waiting = (*self.kv_holding_waiting, *self.waiting)
        if any(self._is_held_back(request) for request in waiting):
            return False
        active = (*self.running, *waiting)
        pending = [self._num_pending(request) for request in active]
        num_tokens = sum(pending)
        if num_tokens > self.max_num_scheduled_tokens or self._num_idle_slots + len(active) > self.max_num_active_reqs:
            return False
        num_free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        # None needs more than this bound, which in an ample pool saves looking into every block table.
        if len(active) + (num_tokens + len(active) * self.num_lookahead_tokens) // self.block_size <= num_free:
            return True
        return sum(map(self._blocks_to_add, active, pending)) <= num_free

    def _split_waiting(self) -> tuple[list[Request], list[Request]]:
        """Waiting requests that vLLM holds back for reasons of its own, and the others."""
        blocked: list[Request] = []
        ready: list[Request] = []
        for queue in (self.kv_holding_waiting, self.waiting):
            for request in queue:
                (blocked if self._is_held_back(request) else ready).append(request)
        return blocked, ready

    def _is_held_back(self, request: Request) -> bool:
        if request.status == RequestStatus.RUNNING:
            return False
        awaits_output = request.num_stale_output_tokens > 0 and not request.drop_stale_output
        return awaits_output or (request.status != RequestStatus.WAITING and self._is_blocked_waiting_status(request.status))

    def _make_plan(self) -> Plan:
        blocked, ready = self._split_waiting()
        active = [self._live(request) for request in (*self.running, *ready)]
        num_slots = sum(live.holds_slot for live in active)
        num_slots += sum(self._holds_kv_blocks(request) for request in blocked) + self._num_idle_slots
        active += [self._live(request) for request in self._lapsed.values() if not self._is_held_back(request)]
        resources = Resources(
            token_budget=self.max_num_scheduled_tokens,
            blocks=self.kv_cache_manager.block_pool.get_num_free_blocks() - self._debt,
            slots=self.max_num_active_reqs - num_slots,
            block_size=self.block_size,
            num_lookahead_tokens=self.num_lookahead_tokens,
            pool_blocks=self.kv_cache_manager.block_pool.num_gpu_blocks - 1,  # one is the null block
        )
        made = self._plan_with(active, resources)
        if self._debt and not made.grants:
            made = self._plan_with(active, replace(resources, blocks=resources.blocks + self._debt))
        return made

    def _plan_with(self, active: list[LiveRequest], resources: Resources) -> Plan:
        return plan(active, self._live_idle, resources, self._ranking, self._wall(), self._block_table, self._prefix_hit)

    def _live_idle(self) -> list[LiveRequest]:
        return [self._live(request) for request_id, request in self._idle.items() if request_id not in self._lapsed]

    def _live(self, request: Request) -> LiveRequest:
        stream = self._streams.get(request.request_id)
        if stream is None or not stream.partial:
            return self._look_at(request, stream)
        if stream.live is None:
            stream.live = self._look_at(request, stream)
        elif self.defer_block_free:
            stream.live.evictable = self._request_blocks_can_be_freed(request)
        return stream.live

    def _look_at(self, request: Request, stream: _Stream | None) -> LiveRequest:
        return LiveRequest(
            request_id=request.request_id,
            arrived_at=request.arrival_time,
            last_chunk_at=stream.last_chunk_at if stream is not None else request.arrival_time,
            partial=stream is not None and stream.partial,
            num_computed=request.num_computed_tokens,
            num_target=request.num_computed_tokens + self._num_pending(request),
            num_blocks=self._num_blocks(request),
            holds_slot=request.status == RequestStatus.RUNNING or self._holds_kv_blocks(request),
            evictable=self._request_blocks_can_be_freed(request),
            may_evict=self._weighs or not self._has_lapsed(request),
            num_remaining=stream.num_remaining if stream is not None else None,
        )

    def _block_table(self, request_id: str) -> BlockTable:
        return self._first_tables[request_id]

    def _prefix_hit(self, request_id: str) -> BlockTable:
        return self.kv_cache_manager.get_computed_blocks(self.requests[request_id])[0].blocks[0]

    def _carry_out(self, made: Plan) -> list[Request]:
        """Evict, and leave in vLLM's queues just what the plan lets run, in its order. Returns those held out."""
        for victim in made.victims:
            self._evict(self.requests[victim.request_id], victim.num_kept_blocks)
        blocked, ready = self._split_waiting()
        held = [request for request in (*self.running, *ready) if request.request_id not in made.grants]
        granted = [self.requests[request_id] for request_id in made.grants]
        self.running = [request for request in granted if request.status == RequestStatus.RUNNING]
        self._reset_queues()
        for request in granted:
            if request.status != RequestStatus.RUNNING:
                self._forget_idle(request)
                self.kv_holding_waiting.add_request(request)  # drained first
        for request in blocked:
            self._enqueue_waiting_request(request)
        return held

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

    def _note_hits(self, fresh: Iterable[Request], scheduled: dict[str, int]) -> None:
        """Note what the prefix cache gave to streams that had no KV before this step."""
        for request_id in scheduled:
            if request_id in self._streams:
                self._streams[request_id].live = None
        for request in fresh:
            stream = self._streams.get(request.request_id)
            num_tokens = scheduled.get(request.request_id)
            if stream is not None and num_tokens is not None:
                stream.num_hit = request.num_computed_tokens - num_tokens
                if stream.was_evicted:
                    self._feedback.record(request.request_id, StepKind.RESUMED, stream.num_hit, self._clock())
                    stream.was_evicted = False

    def _note_refusals(self, waiting: Iterable[Request], scheduled: dict[str, int]) -> bool:
        """Mend what vLLM did not take of the waiting requests that it was shown.

        Where there was no plan, the next step makes one. Where blocks were short for the first that was granted, at which vLLM
        stops, the next plan frees more than the sum says. What vLLM skips for reasons of its own needs no mending.
        """
        refused = [r for r in waiting if r.request_id not in scheduled and not self._is_held_back(r)]
        self._must_plan = bool(refused) and self._plan is None
        if self._plan is None:
            return bool(refused)
        grants = self._plan.grants
        refused = [request for request in refused if request.request_id in grants]
        self._feedback.counters.num_grants_refused += len(refused)
        pool = self.kv_cache_manager.block_pool
        is_short = any(
            self._blocks_to_add(request, grants[request.request_id]) > pool.get_num_free_blocks() for request in refused[:1]
        )
        self._debt = min(2 * self._debt + 1, pool.num_gpu_blocks) if is_short else 0
        return bool(refused)

    def _blocks_to_add(self, request: Request, num_tokens: int) -> int:
        """Blocks that the request needs beyond those in its table to compute ``num_tokens`` more."""
        num_slot_tokens = request.num_computed_tokens + num_tokens + self.num_lookahead_tokens
        return max(0, -(-num_slot_tokens // self.block_size) - self._num_blocks(request))

    def _has_work(self) -> bool:
        """Tell whether a step could advance somebody other than a lapsed stream."""
        return bool(self.running or self.kv_holding_waiting or self.waiting)

    def _evict_somebody(self) -> None:
        holders = [r for r in (*self.running, *self._idle.values()) if self._holds_kv_blocks(r)]
        holders = [r for r in holders if self._request_blocks_can_be_freed(r)]
        if holders:
            victim = self._dice.choice(holders)
            self._evict(victim, self._dice.choice([0, self._dice.randrange(self._num_blocks(victim))]))

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Take the planned number of tokens, and of a partial request never the last: vLLM asks for every request here."""
        num_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        stream = self._streams.get(request.request_id)
        if stream is not None and stream.partial:
            num_tokens = min(num_tokens, request.num_tokens - 1 - num_computed_tokens)
        if self._plan is not None:
            num_tokens = min(num_tokens, self._plan.grants.get(request.request_id, 0))
        return max(num_tokens, 0)

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """Leave a partial request at least one token to compute: vLLM's waiting loop ends at a request with none."""
        blocks, num_hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        stream = self._streams.get(request.request_id)
        limit = request.num_tokens - 1
        if stream is not None and stream.partial and num_hit >= limit:
            num_hit = (limit - 1) // self.block_size * self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_hit)
        return blocks, num_hit, boundary, diverged

    # ------------------------------------------------------------------ what goes out

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

    def _refresh_levels(self) -> None:
        counters = self._feedback.counters
        counters.num_partial = self._num_partial
        counters.num_complete = len(self.requests) - self._num_partial
        counters.num_running = len(self.running)
        counters.num_waiting = len(self.kv_holding_waiting) + len(self.waiting)
        counters.num_idle = len(self._idle)
        pool = self.kv_cache_manager.block_pool
        counters.num_used_blocks = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()  # one is the null block

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._forget_idle(request)
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
        """As in vLLM; with ``reset_running_requests`` streams that wait or idle give their KV up too."""
        if reset_running_requests:
            for request in [r for r in (*self._idle.values(), *self.kv_holding_waiting) if self._holds_kv_blocks(r)]:
                if request.status != RequestStatus.WAITING_FOR_REMOTE_KVS:
                    self._evict(request)
        return bool(super().reset_prefix_cache(reset_running_requests, *args, **kwargs))


def _partition(holds: Callable[[Request], bool], requests: Iterable[Request]) -> tuple[list[Request], list[Request]]:
    """Those for which ``holds`` is false, and those for which it is true, in their order."""
    parts: tuple[list[Request], list[Request]] = [], []
    for request in requests:
        parts[holds(request)].append(request)
    return parts


class StreamingScheduler(_StreamingMixin):
    """For synchronous scheduling."""


class AsyncStreamingScheduler(_StreamingMixin, AsyncScheduler):
    """For asynchronous scheduling, where steps are planned before the last one's output is there."""
