"""The scheduler with one guard taken out: each must be caught by some episode, else the guard or the stand-in is idle.

A mutant changes the class below both schedulers, through a ``MonkeyPatch`` that takes it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.scheduler import _Streaming as Streaming
from stream2llm_rag.engine.swap.books import HostBooks
from stream2llm_rag.engine.swap.connector import SwapConnector

Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Mutant] = {}


def mutant(function: Mutant) -> Mutant:
    MUTANTS[function.__name__] = function
    return function


def around(patch: pytest.MonkeyPatch, name: str, wrap: Callable[..., Any], owner: type = Streaming) -> None:
    """Replace a method by ``wrap(original, self, ...)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: wrap(original, self, *args, **kwargs))


@mutant
def truncation_leaves_the_count_of_cached_blocks(patch: pytest.MonkeyPatch) -> None:
    def truncate(original: Any, self: Any, request: Any, keep: int) -> None:
        counts = self.kv_cache_manager.coordinator.single_type_managers[0].num_cached_block
        before = counts.get(request.request_id)
        original(self, request, keep)
        if before is not None:
            counts[request.request_id] = before

    around(patch, "_truncate", truncate)


@mutant
def truncation_to_nothing_keeps_the_slot(patch: pytest.MonkeyPatch) -> None:
    def truncate(original: Any, self: Any, request: Any, keep: int) -> None:
        told = set(self.reset_preempted_req_ids)
        original(self, request, keep)
        self.reset_preempted_req_ids = told

    around(patch, "_truncate", truncate)


@mutant
def truncation_keeps_part_of_a_block_that_is_hashed_or_shared(patch: pytest.MonkeyPatch) -> None:
    def truncate(original: Any, self: Any, request: Any, keep: int) -> None:
        num_left = request.num_computed_tokens
        manager = self.kv_cache_manager.coordinator.single_type_managers[0]
        block = manager.req_to_blocks[request.request_id][keep // self.block_size] if keep % self.block_size else None
        kept = min(keep, num_left)
        before = list(manager.req_to_blocks[request.request_id])
        original(self, request, keep)
        if block is not None and 0 < request.num_computed_tokens < kept:
            block.pool.touch([block])
            manager.req_to_blocks[request.request_id] = before[: kept // self.block_size + 1]
            request.num_computed_tokens = kept

    around(patch, "_truncate", truncate)


@mutant
def truncation_frees_what_a_step_in_flight_writes(patch: pytest.MonkeyPatch) -> None:
    def truncate(original: Any, self: Any, request: Any, keep: int) -> None:
        fence, request.last_sched_seq = request.last_sched_seq, 0
        original(self, request, keep)
        request.last_sched_seq = fence

    around(patch, "_truncate", truncate)


@mutant
def a_prefix_hit_covers_all_that_a_partial_request_may_compute(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "_get_local_prefix_cache_hit", Scheduler._get_local_prefix_cache_hit)


@mutant
def an_append_changes_the_list_that_the_worker_holds(patch: pytest.MonkeyPatch) -> None:
    def extend(original: Any, self: Any, request: Any, token_ids: list[int]) -> None:
        held = request.prompt_token_ids
        original(self, request, token_ids)
        held[:] = request.prompt_token_ids
        request.prompt_token_ids = held

    around(patch, "_extend", extend)


@mutant
def an_update_changes_the_list_that_the_worker_holds(patch: pytest.MonkeyPatch) -> None:
    def replace(original: Any, self: Any, stream: Any, chunk: Any) -> Any:
        held = stream.request.prompt_token_ids
        common = original(self, stream, chunk)
        held[:] = stream.request.prompt_token_ids
        stream.request.prompt_token_ids = held
        return common

    around(patch, "_replace", replace)


@mutant
def new_tokens_leave_a_preempted_request_preempted(patch: pytest.MonkeyPatch) -> None:
    def apply(original: Any, self: Any, stream: Any, op: Any, chunk: Any) -> None:
        before = stream.request.status
        original(self, stream, op, chunk)
        if before == RequestStatus.PREEMPTED:
            stream.request.status = before

    around(patch, "_apply", apply)


@mutant
def new_tokens_leave_a_running_request_running(patch: pytest.MonkeyPatch) -> None:
    def apply(original: Any, self: Any, stream: Any, op: Any, chunk: Any) -> None:
        request, before = stream.request, stream.request.status
        original(self, stream, op, chunk)
        if before == RequestStatus.RUNNING and request.request_id not in self._idle and request.num_computed_tokens:
            self._detach(request)
            request.status = before
            self.running.append(request)

    around(patch, "_apply", apply)


@mutant
def an_evicted_request_with_new_tokens_resumes_with_the_old(patch: pytest.MonkeyPatch) -> None:
    def evict(original: Any, self: Any, request: Any, *args: Any) -> None:
        original(self, request, *args)
        request.status = RequestStatus.PREEMPTED

    around(patch, "_evict", evict)


@mutant
def a_request_that_lost_its_tail_does_not_wait_for_output_in_flight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "_disown_output", lambda self, request: None)


@mutant
def an_eviction_takes_what_a_step_in_flight_writes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "_request_blocks_can_be_freed", lambda self, request: True)


@mutant
def idle_requests_count_as_unfinished(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "get_num_unfinished_requests", Scheduler.get_num_unfinished_requests)


@mutant
def idle_requests_do_not_count_as_requests(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "get_request_counts", Scheduler.get_request_counts)


@mutant
def idle_requests_do_not_count_as_slots(patch: pytest.MonkeyPatch) -> None:
    def count(original: Any, self: Any, request: Any, sign: int) -> None:
        num_slots = self._num_idle_slots
        original(self, request, sign)
        self._num_idle_slots = num_slots

    around(patch, "_count_idle", count)


@mutant
def an_aborted_request_stays_idle(patch: pytest.MonkeyPatch) -> None:
    def free(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        was_idle = request.request_id in self._idle
        freed = original(self, request, *args, **kwargs)
        if was_idle:
            self._idle[request.request_id] = request
        return freed

    around(patch, "_free_request", free)


@mutant
def a_partial_request_is_computed_to_its_last_token(patch: pytest.MonkeyPatch) -> None:
    def reserve(original: Any, self: Any, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        num_planned = num_new_tokens if self._plan is None else self._plan.grants.get(request.request_id, 0)
        return min(num_new_tokens, num_planned)

    around(patch, "_reserve_prefill_lookahead", reserve)


@mutant
def a_finish_keeps_the_sampling_parameters_of_the_opening(patch: pytest.MonkeyPatch) -> None:
    def complete(original: Any, self: Any, stream: Any, final: Any) -> None:
        before = stream.request.sampling_params, stream.request.max_tokens
        original(self, stream, final)
        stream.request.sampling_params, stream.request.max_tokens = before

    around(patch, "_complete", complete)


@mutant
def a_seeded_finish_goes_to_a_worker_that_made_no_generator(patch: pytest.MonkeyPatch) -> None:
    def complete(original: Any, self: Any, stream: Any, final: Any) -> None:
        told = set(self.finished_req_ids)
        original(self, stream, final)
        self.finished_req_ids = told

    around(patch, "_complete", complete)


@mutant
def hashes_of_the_old_prompt_stay(patch: pytest.MonkeyPatch) -> None:
    def replace(original: Any, self: Any, stream: Any, chunk: Any) -> Any:
        before = stream.request.block_hashes
        common = original(self, stream, chunk)
        if before:
            stream.request.block_hashes = before + stream.request.block_hashes[len(before) :]
        return common

    around(patch, "_replace", replace)


@mutant
def evicted_idle_streams_take_turns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "_has_lapsed", lambda self, request: False)


@mutant
def the_engine_sleeps_beside_a_lapsed_stream_that_fits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "_has_room_for_lapsed", lambda self: False)


@mutant
def a_pause_leaves_computed_streams_running(patch: pytest.MonkeyPatch) -> None:
    def collect(original: Any, self: Any, held: Any) -> None:
        if self.pause_state.name == "UNPAUSED":
            original(self, held)

    around(patch, "_collect", collect)


@mutant
def blocks_are_handed_out_before_they_are_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostBooks, "handed_out", lambda self, blocks: None)


@mutant
def slots_are_rotated(patch: pytest.MonkeyPatch) -> None:
    def take(original: Any, self: Any) -> Any:
        copies = original(self)
        ins = [replace(one, slot=other.slot) for one, other in zip(copies.ins, copies.ins[1:] + copies.ins[:1], strict=True)]
        return replace(copies, ins=ins)

    around(patch, "take_copies", take, HostBooks)


@mutant
def a_slot_is_free_while_it_is_read(patch: pytest.MonkeyPatch) -> None:
    def load(original: Any, self: Any, *args: Any) -> None:
        original(self, *args)
        self._free += self._read
        self._read = []

    around(patch, "load", load, HostBooks)


@mutant
def what_an_update_changed_comes_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Streaming, "_forget_changed", lambda self, request, num_common: None)


@mutant
def what_a_step_in_flight_writes_is_copied_early(patch: pytest.MonkeyPatch) -> None:
    around(patch, "keep", lambda keep, self, *args, in_flight: keep(self, *args), HostBooks)


@mutant
def an_abort_leaves_slots_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SwapConnector, "request_finished_all_groups", lambda self, request, block_ids: (False, None))


@mutant
def a_reset_leaves_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostBooks, "drop_all", lambda self: None)


@mutant
def what_is_loaded_may_be_evicted_meanwhile(patch: pytest.MonkeyPatch) -> None:
    def borrow(original: Any, self: Any, *args: Any) -> Any:
        record = original(self, *args)
        if record is not None:
            self.give_back(record)
        return record

    around(patch, "borrow", borrow, HostBooks)


@mutant
def a_record_outlives_its_return(patch: pytest.MonkeyPatch) -> None:
    def load(original: Any, self: Any, record: Any, *args: Any) -> None:
        original(self, record, *args)
        self.give_back(record)

    around(patch, "load", load, HostBooks)


@mutant
def anybody_may_send_operations(patch: pytest.MonkeyPatch) -> None:
    decode = protocol.decode

    def trusting(extra_args: Any, secret: str) -> Any:
        fields = (extra_args or {}).get("stream2llm")
        if isinstance(fields, dict):
            extra_args = {"stream2llm": {**fields, "secret": secret}}
        return decode(extra_args, secret)

    patch.setattr(protocol, "decode", trusting)


@mutant
def a_second_request_of_a_plain_ones_id_reaches_vllm(patch: pytest.MonkeyPatch) -> None:
    def take(original: Any, self: Any, request: Any, op: Any) -> bool:
        if op is None and request.request_id not in self._streams:
            Scheduler.add_request(self, request)
            return True
        return bool(original(self, request, op))

    around(patch, "_take", take)
