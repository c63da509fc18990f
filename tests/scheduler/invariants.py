"""What must hold between any two operations and steps, whatever the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from .store import KvStore, Violation, as_block_hash, digests

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass(slots=True)
class Sent:
    """The books on one request: what was sent, what it must answer, what it answered so far."""

    tokens: list[int]
    partial: bool
    params: SamplingParams | None = None
    expected: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)

    @property
    def known(self) -> list[int]:
        return self.tokens + self.answer


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Violation(message)


def idle_of(scheduler: Any) -> Mapping[str, Request]:
    return getattr(scheduler, "_idle", {})  # stock vLLM has none


def lapsed_of(scheduler: Any) -> Mapping[str, Request]:
    return getattr(scheduler, "_lapsed", {})


def check_queues(scheduler: Any, sent: Mapping[str, Sent]) -> None:
    """Each live request is in one queue, and the counts that the engine core goes by tell of them."""
    require(scheduler.requests.keys() == sent.keys(), f"it has {set(scheduler.requests)}, sent were {set(sent)}")
    places = (scheduler.running, scheduler.waiting, scheduler.kv_holding_waiting, idle_of(scheduler).values())
    times = Counter(request.request_id for place in places for request in place)
    require(times == Counter(sent.keys()), f"requests by the number of queues they are in: {dict(times)}, live: {set(sent)}")
    for request in scheduler.requests.values():
        is_running = any(request is r for r in scheduler.running)
        require(is_running == (request.status == RequestStatus.RUNNING), f"{request.request_id} is {request.status}")
    require(sum(scheduler.get_request_counts()) == len(sent), f"{scheduler.get_request_counts()} counts not {len(sent)}")
    if scheduler.pause_state == PauseState.UNPAUSED:
        runnable = [request_id for request_id, one in sent.items() if not one.partial or _must_run(scheduler, request_id)]
        num_unfinished = scheduler.get_num_unfinished_requests()
        asks = num_unfinished - len(runnable)
        require(asks in (0, bool(lapsed_of(scheduler))), f"{num_unfinished} unfinished, but a step could advance {runnable}")
        if num_unfinished == 0:
            check_rest(scheduler)


def check_rest(scheduler: Any) -> None:
    """The engine core sleeps: no stream that lost its KV while it was idle could come back now."""
    num_slots = sum(request.num_computed_tokens > 0 for request in scheduler.requests.values())
    pool = scheduler.kv_cache_manager.block_pool
    num_reserved = int(scheduler._ranking.rules.reserved_share * (pool.num_gpu_blocks - 1)) if lapsed_of(scheduler) else 0
    num_free = pool.get_num_free_blocks() - num_reserved
    for request in lapsed_of(scheduler).values():
        holds_slot = request.num_computed_tokens > 0
        table = scheduler.kv_cache_manager.get_blocks(request.request_id).blocks[0]
        hit = () if holds_slot else scheduler.kv_cache_manager.get_computed_blocks(request)[0].blocks[0]
        hit = hit[: (request.num_tokens - 2) // scheduler.block_size]  # a token is left to compute
        start = max(scheduler._num_ready(request), len(hit) * scheduler.block_size)
        end = min(request.num_tokens - 1, start + scheduler.max_num_scheduled_tokens) + scheduler.num_lookahead_tokens
        num_blocks = -(-end // scheduler.block_size) - len(table) - sum(block.ref_cnt > 0 for block in hit)
        fits = num_blocks <= num_free and num_slots + (not holds_slot) <= scheduler.max_num_active_reqs
        require(
            not fits, f"{request.request_id} has lapsed, and all sleep though {num_free} blocks are free for its {num_blocks}"
        )


def check_books(scheduler: Any, sent: Mapping[str, Sent], block_size: int) -> None:
    """Each request has the tokens that were sent for it, and what belongs to them."""
    for request_id, one in sent.items():
        request = scheduler.requests[request_id]
        require(list(request.all_token_ids) == one.known, f"{request_id} has other tokens than were sent")
        require(request.prompt_token_ids == one.tokens, f"{request_id} has another prompt than was sent")
        require(request.num_prompt_tokens == len(one.tokens), f"{request_id} miscounts its prompt")
        if request._block_hasher is not None:
            ends = digests(one.known)[block_size - 1 :: block_size]
            require(request.block_hashes == [as_block_hash(d) for d in ends], f"{request_id} has stale block hashes")
        if one.partial:
            require(request.num_computed_tokens < len(one.tokens), f"{request_id} is partial and wholly computed")


def check_seen(scheduler: Any) -> None:
    """What the planner remembers of a stream is what it would see, but for costs, which are learned all the time."""
    for request_id, stream in getattr(scheduler, "_streams", {}).items():
        if stream.live is not None and stream.partial:
            seen, fresh = scheduler._live(stream.request), scheduler._look_at(stream.request, stream)
            require(replace(seen, loss_share=fresh.loss_share) == fresh, f"{request_id} is {fresh}, but seen as {seen}")


def check_pool(scheduler: Any, written_in_flight: Iterable[int]) -> None:
    """Free and used blocks are all blocks; each is counted once for every table that holds it."""
    pool = scheduler.kv_cache_manager.block_pool
    manager = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    holders = Counter(block.block_id for table in manager.req_to_blocks.values() for block in table)
    holders.update(block.block_id for _, blocks in scheduler.deferred_frees for block in blocks)
    free = Counter(block.block_id for block in pool.free_block_queue.get_all_free_blocks())
    require(free.total() == pool.get_num_free_blocks(), "the free list's length is not its count")
    for block in pool.blocks:
        if not block.is_null:
            require(block.ref_cnt == holders[block.block_id], f"{block} is in {holders[block.block_id]} tables")
            require(free[block.block_id] == (block.ref_cnt == 0), f"{block} is {free[block.block_id]} times in the free list")
    for block_id in written_in_flight:
        require(free[block_id] == 0, f"block {block_id} is free while a step that writes it is in flight")


def check_kv(scheduler: Any, sent: Mapping[str, Sent], store: KvStore) -> None:
    """What counts as computed is in the cache; hashes tell the truth; nobody holds blocks for nothing."""
    manager = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    stray = {request_id for request_id, table in manager.req_to_blocks.items() if table} - sent.keys()
    require(not stray, f"{stray} are gone but hold blocks")
    for request_id, one in sent.items():
        request, table = scheduler.requests[request_id], manager.req_to_blocks.get(request_id, ())
        require(request.num_computed_tokens > 0 or not table, f"{request_id} holds blocks with nothing computed in them")
        store.check(request_id, digests(one.known[: request.num_computed_tokens]), [b.block_id for b in table], "holds")
    for block in scheduler.kv_cache_manager.block_pool.blocks:
        if block.block_hash is not None:
            store.check_hashed(block.block_id, block.block_hash)


def check_host(scheduler: Any, sent: Mapping[str, Sent], store: KvStore) -> None:
    """What is kept for requests is what it is said to be; each slot of host memory is free or used, once."""
    swap = getattr(scheduler, "_swap", None)
    if swap is None:
        return
    books = swap.books
    require(books._records.keys() <= sent.keys(), f"{set(books._records) - sent.keys()} are gone but kept")
    used: list[int] = []
    tagged: Counter[int] = Counter()
    for request_id, record in books._records.items():
        places = [(held.block, held.slot) for held in record._held]
        used += [slot for _, slot in places if slot is not None]
        tagged.update(block for block, _ in places if block is not None)
        require(all((block is None) != (slot is None) for block, slot in places), f"{request_id} is kept nowhere: {places}")
        require(record.start < record.end <= len(sent[request_id].known), f"{request_id} is kept up to {record.end}")
        store.check_host(request_id, digests(sent[request_id].known[: record.end]), places, record.first)
    require(sorted([*books._free, *used]) == list(range(books.num_slots)), f"{used} are used and {books._free} free")
    watched = {block: len(held) for block, held in books._on_device.items()}
    require(watched == dict(tagged), f"{dict(tagged)} are kept on the device, {watched} watched")


def _must_run(scheduler: Any, request_id: str) -> bool:
    """Tell whether a partial request has something to compute, and may ask for room to do it."""
    request = scheduler.requests[request_id]
    return bool(request.num_computed_tokens < request.num_tokens - 1) and request_id not in lapsed_of(scheduler)
