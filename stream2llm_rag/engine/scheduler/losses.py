"""Who loses KV: by an update, by a planned eviction, or by a preemption of vLLM's own."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.feedback import StepKind
from stream2llm_rag.engine.scheduler.state import Stream
from stream2llm_rag.engine.scheduler.swapping import Swapping


class Losses(Swapping):
    """Takes KV from requests, whole or from the end."""

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

    def _evict(self, request: Request, num_kept_blocks: int = 0) -> None:
        """Free all KV of a running, waiting or idle request, or all behind the first ``num_kept_blocks``."""
        was_idle = request.request_id in self._idle
        self._detach(request)
        before, status, table = request.num_computed_tokens, request.status, self._blocks_of(request)
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
        self._keep(request, before, table)
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
        before, table = request.num_computed_tokens, self._blocks_of(request)
        super()._preempt_request(request, *args, **kwargs)
        self._keep(request, before, table)
        self._feedback.counters.num_preemptions += 1
        stream = self._streams.get(request.request_id)
        if stream is not None:
            self._note_loss(stream, before)

    def _note_loss(self, stream: Stream, num_before: int) -> None:
        num_left = stream.request.num_computed_tokens
        stream.num_hit = min(stream.num_hit, num_left)
        stream.was_evicted = num_left == 0
        stream.last_step = -1
        stream.live = None
        self._feedback.record(stream.request.request_id, StepKind.EVICTED, num_before - num_left, self._clock())

    def _evict_somebody(self) -> None:
        holders = [r for r in (*self.running, *self._idle.values()) if self._holds_kv_blocks(r)]
        holders = [r for r in holders if self._request_blocks_can_be_freed(r)]
        if holders:
            victim = self._dice.choice(holders)
            self._evict(victim, self._dice.choice([0, self._dice.randrange(self._num_blocks(victim))]))
