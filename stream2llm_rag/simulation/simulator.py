"""Replays a workload in virtual time: the real scheduler decides, a stand-in worker answers, a model says how long steps take.

The clock model: scheduling takes no time of its own, and steps run one after another, each for as long as ``step_time`` says.
Synchronous: a step is scheduled when the one before has ended and its output been taken. Asynchronous, at depth 2: when the one
before begins, without its output; it runs when that one has ended. What arrives while the core waits for a step reaches the
scheduler at the step's end. Copies to and from host memory are made before a step's forward pass, one behind the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from stream2llm_rag.engine.cost_model import CostModel, Direction, Preemption
from stream2llm_rag.engine.costs import Costs
from stream2llm_rag.engine.feedback import CoreFeedback, StepKind
from stream2llm_rag.engine.swap.metadata import SwapTimes
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.books import RequestBook, require
from stream2llm_rag.simulation.building import CoreShape, build_scheduler
from stream2llm_rag.simulation.core import CoreLoop, runner_output
from stream2llm_rag.simulation.frontends import Door, Frontend, Streaming
from stream2llm_rag.simulation.frontends.base import block_hasher
from stream2llm_rag.simulation.records import summarise
from stream2llm_rag.simulation.result import SimulationResult, Tally, WallClock
from stream2llm_rag.simulation.step_time import StepTime
from stream2llm_rag.simulation.trace import Query, check_trace

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

StepTimeModel: TypeAlias = Callable[[Sequence[tuple[int, int]]], float]
"""How many seconds a step takes that computes, for each of its requests, (new tokens, tokens of context before them)."""

PATIENCE_S = 600.0
"""When all has been sent and no token has come out for so long, in virtual time, the rest never will."""
_FIRST_RETRY_S, _LAST_RETRY_S = 1e-3, 10.0


def simulate(
    trace: Sequence[Query],
    frontend: Frontend,
    step_time: StepTimeModel,
    shape: CoreShape | None = None,
    *,
    trim_s: float = 0.0,
) -> SimulationResult:
    """Replay ``trace``; the percentiles leave out what arrives in its first and last ``trim_s`` seconds.

    A front end that leaves requests unanswered is reported as deadlocked, and those requests as infinitely late. Raises
    :class:`InvalidInputError` for a trace that ``shape`` cannot serve, and :class:`ConservationError` where the scheduler
    breaks the books (:mod:`stream2llm_rag.simulation.books`).
    """
    shape = shape or CoreShape()
    check_trace(trace)
    for query in trace:
        _check_fits(query, shape)
    return _Simulation(trace, frontend, step_time, shape).run(trim_s)


def _check_fits(query: Query, shape: CoreShape) -> None:
    num_tokens = max(*query.prompt_lengths, query.num_prompt_tokens + query.num_output_tokens)
    limit = min(shape.max_model_len, (shape.num_blocks - 1) * shape.block_size)
    if num_tokens > limit:
        raise InvalidInputError(
            f"query {query.query_id} has {num_tokens} tokens, prompt and answer; there is room for {limit}. "
            "Write a larger num_blocks or max_model_len, or leave it out."
        )


@dataclass(slots=True)
class _Step:
    output: SchedulerOutput
    result: ModelRunnerOutput
    ends_s: float


@dataclass(slots=True)
class _Feedback(CoreFeedback):
    """Enters what the scheduler reports of streams into their books, as it reports it."""

    books: dict[str, RequestBook] = field(default_factory=dict)
    swaps: bool = False

    def record(self, request_id: str, kind: StepKind, num_tokens: int, started_s: float, ended_s: float | None = None) -> None:
        """Enter KV that is lost, or back from host memory; the books know the rest themselves."""
        if kind is StepKind.EVICTED:
            self.books[request_id].evicted(num_tokens)
        elif kind is StepKind.INVALIDATED:
            self.books[request_id].invalidated(num_tokens)
        elif kind is StepKind.RESUMED and self.swaps:
            self.books[request_id].returned(num_tokens)


class _Simulation(CoreLoop[_Step]):
    def __init__(self, trace: Sequence[Query], frontend: Frontend, step_time: StepTimeModel, shape: CoreShape) -> None:
        scheduler = build_scheduler(frontend.scheduler_class(shape.depth > 1), shape, frontend.settings)
        super().__init__(scheduler, shape.depth)
        self._frontend = frontend
        self._step_time = step_time
        self._prefix_caching = shape.prefix_caching
        self._block_size = shape.block_size
        self._now_s = 0.0
        self._free_from_s = 0.0  # when the worker has ended all steps
        self._door = Door(scheduler, block_hasher(shape.block_size) if shape.prefix_caching else None)
        self._books = [frontend.book(query, number) for number, query in enumerate(trace)]
        self._sends = _sends(frontend, self._books)
        self._num_sent = 0
        self._retry_s = 0.0
        self._last_progress_s = 0.0
        self._deadlocked_at_s: float | None = None
        self._tally = Tally()
        self._turns_s = self._update_s = 0.0
        self._pool = scheduler.kv_cache_manager.block_pool
        self._tables = scheduler.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks
        self._reports = isinstance(frontend, Streaming)
        if self._reports:
            scheduler._clock = scheduler._wall = lambda: self._now_s
            scheduler._feedback = _Feedback(books=self._door.books, swaps=shape.num_host_blocks is not None)
        if shape.num_host_blocks is not None:
            self._costs = _costs(frontend, step_time, shape)
            preempt = Preemption(frontend.settings.preempt)
            scheduler.connector.cost = CostModel(  # which goes on learning
                self._costs, shape.block_size, mode=preempt, token_budget=shape.token_budget
            )

    def run(self, trim_s: float) -> SimulationResult:
        started = time.perf_counter()
        while self._deadlocked_at_s is None:
            self._send_due()
            if self.has_work:
                self.turn()
            elif (next_s := self._next_send_s()) < math.inf:
                self._now_s = next_s
            else:
                break
        self._check_end()
        return self._result(trim_s, time.perf_counter() - started)

    # ------------------------------------------------------------------ what front ends send

    def _next_send_s(self) -> float:
        return self._sends[self._num_sent][0] if self._num_sent < len(self._sends) else math.inf

    def _send_due(self) -> None:
        while self._next_send_s() <= self._now_s:
            at_s, number, index = self._sends[self._num_sent]
            self._num_sent += 1
            self._door.now_s = at_s
            book = self._books[number]
            self._frontend.send(self._door, book, index)
            if index == len(book.query.chunks) - 1:
                book.final_came()
            self._last_progress_s = self._now_s

    # ------------------------------------------------------------------ steps

    def turn(self) -> None:
        started = time.perf_counter()
        super().turn()
        self._turns_s += time.perf_counter() - started

    def dispatch(self, output: SchedulerOutput) -> None:
        """Give the step to the worker, which runs it when it has ended those before."""
        if not self._reports:
            self._note_preemptions(output)
        sampled, items = self._enter(output)
        result = runner_output(output, sampled)
        self._check_pool()
        copying_s = self._copying_s(output, items, result)
        if items or copying_s:
            self._retry_s = 0.0
            starts_s = max(self._now_s, self._free_from_s)
            duration_s = copying_s + (self._duration_s(items) if items else 0.0)
            self._free_from_s = starts_s + duration_s
            use = 1.0 - self._pool.get_num_free_blocks() / (self._pool.num_gpu_blocks - 1)
            self._tally.add(output.total_num_scheduled_tokens, duration_s, use, len(self.scheduler.requests))
        elif not any(step.output.total_num_scheduled_tokens for step in self.in_flight):
            self._stall()
        self.in_flight.append(_Step(output, result, max(self._now_s, self._free_from_s)))

    def take_output(self, step: _Step) -> None:
        """Let time pass up to the step's end, and deliver what it sampled."""
        self._now_s = max(self._now_s, step.ends_s)
        started = time.perf_counter()
        outputs = self.scheduler.update_from_output(step.output, step.result)
        self._update_s += time.perf_counter() - started
        for one in (one for core_outputs in outputs.values() for one in core_outputs.outputs):
            self._door.books[one.request_id].answered(len(one.new_token_ids), one.finish_reason is not None, self._now_s)
            self._last_progress_s = self._now_s

    def _note_preemptions(self, output: SchedulerOutput) -> None:
        for request_id in output.preempted_req_ids or ():
            book = self._door.books[request_id]
            book.evicted(book.num_kv)
            self._tally.num_preemptions += 1

    def _enter(self, output: SchedulerOutput) -> tuple[dict[str, int], list[tuple[int, int]]]:
        """Enter the step into the books. Returns who samples, and (new tokens, context before) of each request."""
        sampled: dict[str, int] = {}
        items: list[tuple[int, int]] = []
        requests, tables, books = self.scheduler.requests, self._tables, self._door.books
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            end = requests[request_id].num_computed_tokens
            start = end - num_tokens
            holds_back = self._frontend.holds_back
            if books[request_id].scheduled(start, num_tokens, prefix_caching=self._prefix_caching, holds_back=holds_back):
                sampled[request_id] = 0
            num_slots = len(tables[request_id]) * self._block_size
            require(end <= num_slots, f"request {request_id} computes position {end - 1} beyond its {num_slots} slots")
            items.append((num_tokens, start))
        return sampled, items

    def _copying_s(self, output: SchedulerOutput, items: list[tuple[int, int]], result: ModelRunnerOutput) -> float:
        """Seconds of the step's copies, which are told with the step's own as a worker tells them; 0 without host memory."""
        if output.kv_connector_metadata is None:
            return 0.0
        metadata, costs = output.kv_connector_metadata, self._costs
        copies = metadata.copies
        counts = {Direction.OUT: len(copies.early_outs) + len(copies.outs), Direction.IN: len(copies.ins)}
        seconds = {Direction.OUT: costs.swap_out(counts[Direction.OUT]), Direction.IN: costs.swap_in(counts[Direction.IN])}
        times = SwapTimes({metadata.step: self._duration_s(items)} if items else {})
        times.copies.update({(metadata.step, way): (count, seconds[way]) for way, count in counts.items() if count})
        result.kv_connector_output = KVConnectorOutput(kv_connector_worker_meta=times)
        return sum(seconds.values())

    def _duration_s(self, items: list[tuple[int, int]]) -> float:
        duration_s = self._step_time(items)
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise InvalidInputError(f"step_time gave {duration_s} s for {items}. Write one that gives a finite time above 0.")
        return duration_s

    def _stall(self) -> None:
        """Nothing runs, and nobody could be scheduled: look again a moment later, or when something arrives.

        The core would look again at once, for ever; here the moments double, so that a long standstill costs few steps. The
        first empty step takes no time, as it may only tell the worker who has finished.
        """
        until_s = max(self._now_s, min(self._now_s + self._retry_s, self._next_send_s()))
        self._retry_s = min(max(2.0 * self._retry_s, _FIRST_RETRY_S), _LAST_RETRY_S)
        if self._next_send_s() < math.inf and self.scheduler.get_num_unfinished_requests():
            self._tally.stalled_s += until_s - self._now_s
        self._now_s = until_s
        if self._next_send_s() == math.inf and self._now_s - self._last_progress_s > PATIENCE_S:
            self._deadlocked_at_s = self._last_progress_s

    # ------------------------------------------------------------------ what must hold

    def _check_pool(self) -> None:
        """Free and held blocks are all blocks but the null block: as queries share no tokens, none is held twice."""
        num_held, num_free = sum(map(len, self._tables.values())), self._pool.get_num_free_blocks()
        num_blocks = self._pool.num_gpu_blocks - 1
        require(num_held + num_free == num_blocks, f"{num_held} blocks are held and {num_free} free, of {num_blocks}")

    def _check_end(self) -> None:
        num_computed = sum(book.num_computed for book in self._books)
        num_scheduled = self._tally.num_scheduled_tokens
        require(num_computed == num_scheduled, f"steps computed {num_scheduled} tokens, requests {num_computed}")
        if self._deadlocked_at_s is not None:
            return
        unanswered = [book.query.query_id for book in self._books if book.finished_s == math.inf]
        require(not unanswered, f"the core rests, but {unanswered[:5]} are not answered")
        require(not self.scheduler.requests, f"all is answered, but {list(self.scheduler.requests)[:5]} are left")
        num_free, num_blocks = self._pool.get_num_free_blocks(), self._pool.num_gpu_blocks - 1
        require(num_free == num_blocks, f"all is answered, but {num_blocks - num_free} blocks are not free")
        if self._reports:
            num_refused = self.scheduler._feedback.counters.num_ops_refused
            require(num_refused == 0, f"the scheduler refused {num_refused} operations")

    # ------------------------------------------------------------------ what comes out

    def _result(self, trim_s: float, total_s: float) -> SimulationResult:
        records = tuple(book.record() for book in self._books)
        summary = summarise(records, trim_s=trim_s, deadlocked=self._deadlocked_at_s is not None)
        counters = self.scheduler._feedback.counters if self._reports else None
        engine = self._tally.figures(self._deadlocked_at_s, counters)
        wall = WallClock(total_s, self._turns_s - self._update_s, self._update_s, counters.planning_s if counters else 0.0)
        return SimulationResult(records, summary, engine, wall)


def _costs(frontend: Frontend, step_time: StepTimeModel, shape: CoreShape) -> Costs:
    """What calibration finds on this machine."""
    if not isinstance(step_time, StepTime):
        raise InvalidInputError(f"{frontend.name} copies KV, and step_time does not say how long that takes. Write a StepTime.")
    return step_time.costs(shape.block_size)


def _sends(frontend: Frontend, books: Sequence[RequestBook]) -> list[tuple[float, int, int]]:
    """All that will be sent, in order of time: (when, number of the query, index of the chunk)."""
    return sorted(
        (book.query.arrival_s + book.query.chunks[index].after_s, book.number, index)
        for book in books
        for index in frontend.sends(book.query)
    )
