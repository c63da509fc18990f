"""A step: plan, evict, let vLLM schedule what the plan lets run, and mend what it left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.feedback import StepKind
from stream2llm_rag.engine.planner import Plan
from stream2llm_rag.engine.scheduler.planning import Planning


class Steps(Planning):
    """Shows vLLM just the requests that the plan lets run."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, evict, and let vLLM schedule what the plan lets run. Without streams this is vLLM's own ``schedule``."""
        started = self._last_started = self._clock()
        if not (self._streams or (self._swap is not None and self._swap.books)):
            output = super().schedule(*args, **kwargs)
        elif self._pause_state == PauseState.UNPAUSED:
            output = self._schedule_streams(*args, **kwargs)
        else:
            output = super().schedule(*args, **kwargs)
            self._collect(())  # whoever waits for the engine to rest waits for streams in `running` too
        for request_id in output.num_scheduled_tokens:
            if request_id in self._streams:
                self._streams[request_id].live = None
        self._step_started[id(output)] = started
        self._note_copies(output)
        return output

    def _schedule_streams(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        self._was_refused_at_rest = False
        if self._chaos and self._dice.random() < self._chaos and self._has_work():
            self._evict_somebody()
        self._plan = None if self._everything_fits() else self._make_plan()
        held = self._carry_out(self._plan) if self._plan is not None else []
        held += self._bring_back([*self.kv_holding_waiting, *self.waiting])
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

    def _note_room(self, made: Plan) -> None:
        """Remember the room that was left, if nothing but room was short for all lapsed streams that were left out."""
        has_tokens_left = sum(made.grants.values()) < self.max_num_scheduled_tokens and not made.defers_loads
        knew_them = not any(victim.request_id in self._lapsed for victim in made.victims)
        if has_tokens_left and knew_them and not any(map(self._is_held_back, self._lapsed.values())):
            self._refused_room = made.num_free_blocks, made.num_free_slots
            self._was_refused_at_rest = not made.grants

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

    def _note_hits(self, fresh: Iterable[Request], scheduled: dict[str, int]) -> None:
        """Note what the prefix cache gave to streams that had no KV before this step."""
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
        """Give no more of a hit than the plan counted on."""
        blocks, num_hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if (usable := self._usable_hit(request, num_hit)) < num_hit:
            num_hit, blocks = usable, self.kv_cache_manager.truncate_computed_blocks(blocks, usable)
        return blocks, num_hit, boundary, diverged
