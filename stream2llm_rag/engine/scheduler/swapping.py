"""What a victim loses is kept in host memory, where that pays, and loaded back when it is about to run.

A request that comes back has its KV before vLLM looks at it: blocks are allocated for it as for tokens that are to be computed,
and the copies into them are made before the step's forward pass. To the planner those tokens count as computed (they need
blocks, but no budget), so a load is never begun without room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.feedback import StepKind
from stream2llm_rag.engine.scheduler.queues import Queues
from stream2llm_rag.engine.swap.books import HostBooks, HostRecord
from stream2llm_rag.engine.swap.connector import SwapConnector, swap_connector_in, swap_metadata_in


class Swapping(Queues):
    """Keeps KV of victims, and brings it back. Does nothing without the connector, as then ``_swap`` is None."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._swap: SwapConnector | None = None
        self._loaded: set[str] = set()  # got KV by a step that computes nothing of theirs, and may be in flight
        managers = self.kv_cache_manager.coordinator.single_type_managers
        connector = swap_connector_in(self.connector)
        if connector is not None and [type(manager) for manager in managers] == [FullAttentionManager]:
            self._swap = connector
            pool = self.kv_cache_manager.block_pool
            pool.get_new_blocks = _telling(self._swap.books, pool.get_new_blocks)

    def _record_of(self, request: Request) -> HostRecord | None:
        """What is held of the request."""
        return self._swap.books.get(request.request_id) if self._swap is not None else None

    def _num_ready(self, request: Request) -> int:
        """Tokens of the request that have KV, or get it back when it is admitted, but for the one that it then computes."""
        record = self._record_of(request)
        num_computed: int = request.num_computed_tokens
        if record is None or request.status == RequestStatus.RUNNING or record.start > num_computed:
            return num_computed
        return max(num_computed, min(record.end, num_computed + self._num_pending(request) - 1))

    def _loss_share(self, num_tokens: int) -> float:
        """What losing the KV of a prompt of so many tokens costs, as a share of what it costs to compute it again."""
        if self._swap is None or num_tokens <= 0:
            return 1.0
        decision = self._swap.cost.for_victim(num_tokens)
        return min(1.0, decision.swap_s / decision.recompute_s) if decision.swap and decision.recompute_s > 0 else 1.0

    def _num_free_host_blocks(self) -> int:
        return self._swap.books.num_slots - self._swap.books.num_promised_slots if self._swap is not None else 0

    # ------------------------------------------------------------------ out

    def _blocks_of(self, request: Request) -> list[int]:
        """The blocks that it may lose now, to be asked for before."""
        if self._swap is None:
            return []
        return [block.block_id for block in self._first_tables.get(request.request_id, ())]

    def _keep(self, request: Request, num_before: int, table: list[int]) -> None:
        """Keep what the request has lost of ``num_before`` tokens in ``table``, if that is cheaper than to compute it again."""
        if self._swap is None:
            return
        books, record = self._swap.books, self._record_of(request)
        num_left: int = request.num_computed_tokens
        num_tokens = min(num_before, request.num_tokens)  # behind come placeholders of tokens that are not known yet
        end = num_tokens if record is None or record.start > num_tokens else max(num_tokens, record.end)
        if end > num_left and self._swap.cost.for_victim(end - num_left, num_left).swap:
            in_flight = request.num_in_flight_tokens > 0 or request.request_id in self._loaded
            books.keep(request.request_id, num_left // self.block_size, num_tokens, table, in_flight=in_flight)
            self._feedback.counters.num_swap_evictions += 1
            if request.request_id in self._streams:
                self._feedback.record(request.request_id, StepKind.SWAPPED, num_tokens - num_left, self._clock())
        else:
            books.drop(request.request_id)

    def _forget_changed(self, request: Request, num_common: int) -> None:
        """Of what is held keep only the first ``num_common`` tokens: those behind them have changed."""
        if self._swap is not None:
            self._swap.books.trim(request.request_id, num_common)

    # ------------------------------------------------------------------ in

    def _bring_back(self, waiting: Iterable[Request]) -> list[Request]:
        """Load what is held of those that are about to run. Returns those that have nothing left to compute: they rest."""
        if self._swap is None or not self._swap.books:
            return []
        back = [request for request in waiting if self._record_of(request) is not None and not self._is_held_back(request)]
        for request in back:
            held = self._record_of(request)
            if held is not None:  # else one before it needed the room more
                self._load(request, held)
        done = [request for request in back if self._num_pending(request) <= 0]
        for request in done:
            self._detach(request)
        return done

    def _load(self, request: Request, held: HostRecord) -> None:
        """Give the request its KV back, behind what it has and what the prefix cache has, if that pays and there is room."""
        assert self._swap is not None
        before, num_given_up = request.num_computed_tokens, held.end - held.start
        found, num_hit = None, 0
        if not before:
            found, num_hit, *_ = self.kv_cache_manager.get_computed_blocks(request)
        start = before + num_hit
        record = self._borrow(request, held, start)
        end = start if record is None else record.end
        if end > before and self.kv_cache_manager.allocate_slots(request, end - start, num_hit, found) is None:
            if record is not None:
                self._swap.books.give_back(record)
            return
        if record is not None:
            self._swap.books.load(record, start, self._blocks_of(request))
        if end > before:
            self._loaded.add(request.request_id)  # with a hit alone, too: the same step may copy in what it hits
            request.num_computed_tokens = end
            self._note_return(request, before, num_hit)
        self._swap.cost.saw_return(num_given_up, min(num_hit, num_given_up))

    def _borrow(self, request: Request, held: HostRecord, start: int) -> HostRecord | None:
        """What is to be loaded from token ``start`` on. None: nothing, and nothing is held any more."""
        assert self._swap is not None
        limit = request.num_tokens - 1  # vLLM wants one to compute
        if self._swap.cost.for_return(min(held.end, limit) - start, start).swap:
            record = self._swap.books.borrow(request.request_id, start, limit)
            if record is not None:
                return record
        self._swap.books.drop(request.request_id)
        return None

    def _note_return(self, request: Request, num_before: int, num_hit: int) -> None:
        stream = self._streams.get(request.request_id)
        if stream is not None:
            num_tokens = request.num_computed_tokens - num_before
            self._feedback.record(request.request_id, StepKind.RESUMED, num_tokens, self._clock())
            stream.num_hit, stream.was_evicted, stream.live = max(stream.num_hit, num_hit), False, None

    def _note_copies(self, scheduler_output: Any) -> None:
        """Count what the step copies."""
        if self._swap is not None:
            self._loaded.difference_update(scheduler_output.num_scheduled_tokens)
            copies = swap_metadata_in(scheduler_output.kv_connector_metadata).copies
            self._feedback.counters.num_blocks_out += len(copies.early_outs) + len(copies.outs)
            self._feedback.counters.num_blocks_in += len(copies.ins)


def _telling(books: HostBooks, hand_out: Callable[[int], list[Any]]) -> Callable[[int], list[Any]]:
    """The pool's ``get_new_blocks``, which tells the books what it hands out: the last moment at which it can be copied."""

    def get_new_blocks(num_blocks: int) -> list[Any]:
        blocks = hand_out(num_blocks)
        books.handed_out(block.block_id for block in blocks)
        return blocks

    return get_new_blocks
