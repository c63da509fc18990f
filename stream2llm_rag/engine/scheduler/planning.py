"""What the planner is shown: plain values of every live request, and what a step may hand out."""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.ledger import BlockTable
from stream2llm_rag.engine.planner import Plan, Resources, plan
from stream2llm_rag.engine.policy import LiveRequest
from stream2llm_rag.engine.scheduler.losses import Losses
from stream2llm_rag.engine.scheduler.state import Stream


class Planning(Losses):
    """Makes the plan of a step."""

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
            host_blocks=self._num_free_host_blocks(),
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
        record = self._record_of(request)
        held_end = None if record is None else record.end
        if stream.live is None or stream.held_end != held_end:
            stream.live, stream.held_end = self._look_at(request, stream), held_end
        elif self.defer_block_free:
            stream.live.evictable = self._request_blocks_can_be_freed(request)
        return stream.live

    def _look_at(self, request: Request, stream: Stream | None) -> LiveRequest:
        num_ready = self._num_ready(request)
        return LiveRequest(
            request_id=request.request_id,
            arrived_at=request.arrival_time,
            last_chunk_at=stream.last_chunk_at if stream is not None else request.arrival_time,
            partial=stream is not None and stream.partial,
            num_computed=num_ready,
            num_target=request.num_computed_tokens + self._num_pending(request),
            num_blocks=self._num_blocks(request),
            holds_slot=request.status == RequestStatus.RUNNING or self._holds_kv_blocks(request),
            evictable=self._request_blocks_can_be_freed(request),
            may_evict=not self._has_lapsed(request) or (self._weighs and self._record_of(request) is None),
            num_remaining=stream.num_remaining if stream is not None else None,
            num_loaded=num_ready - request.num_computed_tokens,
            loss_share=self._loss_share(num_ready),
        )

    def _block_table(self, request_id: str) -> BlockTable:
        return self._first_tables[request_id]

    def _prefix_hit(self, request_id: str) -> BlockTable:
        request = self.requests[request_id]
        found, num_hit, *_ = self.kv_cache_manager.get_computed_blocks(request)
        hit: BlockTable = found.blocks[0]
        return hit[: self._usable_hit(request, num_hit) // self.block_size]

    def _usable_hit(self, request: Request, num_hit: int) -> int:
        """Tokens of a prefix-cache hit that the request can have.

        A partial one is left at least one token to compute: vLLM's waiting loop ends at a request with none.
        """
        stream = self._streams.get(request.request_id)
        limit = request.num_tokens - 1
        if stream is None or not stream.partial or num_hit < limit:
            return num_hit
        return (limit - 1) // self.block_size * self.block_size
