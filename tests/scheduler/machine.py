"""The engine core without a model, in process: the real scheduler, a stand-in worker, and the pipeline between them.

It keeps books of its own, from what was sent alone: which requests live, with which tokens, and what each must answer. After
every operation and every step it compares them with what the scheduler and the KV cache hold (:mod:`invariants`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.protocol import Op, OpKind
from stream2llm_rag.simulation.core import CoreLoop

from .building import SECRET, Setup, make_scheduler
from .invariants import Sent, check_books, check_host, check_kv, check_pool, check_queues, check_seen, require
from .store import EMPTY_PREFIX, KvStore, block_hasher, extended
from .workers import V1Worker, V2Worker, Worker, sample

if TYPE_CHECKING:
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

    from stream2llm_rag.engine.swap.books import StepCopies


@dataclass(frozen=True, slots=True)
class _Step:
    output: SchedulerOutput
    result: ModelRunnerOutput
    written_blocks: frozenset[int]
    changed_blocks: frozenset[int]


class Machine(CoreLoop[_Step]):
    """Takes operations as a front end sends them, and computes each step when it is dispatched."""

    def __init__(self, setup: Setup, *, seed: int = 0) -> None:
        super().__init__(make_scheduler(setup, random.Random(seed)), setup.depth)
        self.setup = setup
        self.sent: dict[str, Sent] = {}
        self.num_answered = 0
        self._now = 1.0
        self.scheduler._clock = self.scheduler._wall = lambda: self._now
        self._store = KvStore(setup.num_blocks, setup.block_size, setup.num_host_blocks or 0)
        self._worker = _make_worker(setup, self._store)
        self._hasher = block_hasher(setup.block_size) if setup.prefix_caching else None
        self._abort_before_output: str | None = None
        self._num_scheduled_tokens = 0

    # ------------------------------------------------------------------ what a front end sends

    def open(self, request_id: str, tokens: Sequence[int]) -> None:
        self.sent[request_id] = Sent(list(tokens), partial=True)
        self._send(request_id, tokens, Op(OpKind.APPEND, opens=True))

    def append(self, request_id: str, tokens: Sequence[int]) -> None:
        self.sent[request_id].tokens += tokens
        self._send(request_id, tokens, Op(OpKind.APPEND))

    def update(self, request_id: str, tokens: Sequence[int]) -> None:
        self.sent[request_id].tokens = list(tokens)
        self._send(request_id, tokens, Op(OpKind.UPDATE))

    def finish(self, request_id: str, tokens: Sequence[int], params: SamplingParams) -> None:
        """Finish with the whole final prompt; an id that is not there is opened and finished in one."""
        opens = request_id not in self.sent
        self._expect(request_id, tokens, params)
        self._send(request_id, tokens, Op(OpKind.FINISH, opens=opens), params)

    def plain(self, request_id: str, tokens: Sequence[int], params: SamplingParams) -> None:
        self._expect(request_id, tokens, params)
        self._add(request_id, tokens, params)

    def abort(self, request_id: str) -> None:
        self._abort(request_id)
        self.check()

    def stray(self, request_id: str, tokens: Sequence[int], op: Op | None = None, **extra_args: Any) -> None:
        """Send what must change nothing: an operation of a stream that takes none, or what a stranger forged."""
        params = SamplingParams(max_tokens=3)
        params.extra_args = extra_args if op is None else protocol.encode(op, SECRET)
        self._add(request_id, tokens, params)

    def reset_prefix_cache(self, *, running_too: bool) -> None:
        self.scheduler.reset_prefix_cache(reset_running_requests=running_too)
        swap = getattr(self.scheduler, "_swap", None)
        require(swap is None or not swap.books, "what was computed before a reset is kept")
        self.check()

    def pause(self, state: PauseState) -> None:
        """Pause, or go on with ``UNPAUSED``: what vLLM's pause and sleep calls do."""
        self.scheduler.set_pause_state(state)
        self.check()

    def _send(self, request_id: str, tokens: Sequence[int], op: Op, params: SamplingParams | None = None) -> None:
        params = SamplingParams(max_tokens=1) if params is None else params.clone()
        params.extra_args = protocol.encode(op, SECRET)
        self._add(request_id, tokens, params)

    def _add(self, request_id: str, tokens: Sequence[int], params: SamplingParams) -> None:
        self._now += 0.25
        request = Request(request_id, list(tokens), params, None, arrival_time=self._now, block_hasher=self._hasher)
        self.scheduler.add_request(request)
        self.check()

    def _expect(self, request_id: str, tokens: Sequence[int], params: SamplingParams) -> None:
        expected = answer_of(tokens, params, self.setup.max_model_len)
        self.sent[request_id] = Sent(list(tokens), partial=False, params=params, expected=expected)

    def _abort(self, request_id: str) -> None:
        self.sent.pop(request_id, None)
        self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)

    # ------------------------------------------------------------------ what the core does

    def step(self, abort: str | None = None) -> int:
        """One turn of the busy loop. Returns the number of tokens scheduled.

        ``abort`` comes while a step runs whose output this turn takes, as ``_process_aborts_queue`` lets it.
        """
        self._now += 1.0
        self._num_scheduled_tokens, self._abort_before_output = 0, abort
        self.turn()
        return self._num_scheduled_tokens

    def dispatch(self, output: SchedulerOutput) -> None:
        self._num_scheduled_tokens = output.total_num_scheduled_tokens
        if output.kv_connector_metadata is not None:
            self._copy(output.kv_connector_metadata.copies)
        result = self._worker.execute(output)
        for request_id, tokens in zip(result.req_ids, result.sampled_token_ids, strict=True):
            require(not (tokens and self.sent[request_id].partial), f"{request_id} is partial and sampled")
        tables = (self.scheduler.kv_cache_manager.get_block_ids(request_id)[0] for request_id in result.req_ids)
        written = frozenset(block for table in tables for block in table) if self.setup.defer_frees else frozenset()
        self.in_flight.append(_Step(output, result, written, self._changed_by(output)))
        self.check()

    def _copy(self, copies: StepCopies) -> None:
        """Those that are early are made at any time since the oldest step in flight began."""
        changed = {block for step in self.in_flight for block in step.changed_blocks}
        for copy in copies.early_outs:
            require(copy.block not in changed, f"block {copy.block} is copied out while a step in flight writes it")
        self._store.copy(copies)

    def _changed_by(self, output: SchedulerOutput) -> frozenset[int]:
        metadata = output.kv_connector_metadata
        changed = set() if metadata is None else {copy.block for copy in metadata.copies.ins}
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            table = self.scheduler.kv_cache_manager.get_block_ids(request_id)[0]
            end = self.scheduler.requests[request_id].num_computed_tokens
            changed.update(table[(end - num_tokens) // self.setup.block_size : -(-end // self.setup.block_size)])
        return frozenset(changed)

    def take_output(self, step: _Step) -> None:
        if self._abort_before_output is not None:
            self._abort(self._abort_before_output)
        outputs = self.scheduler.update_from_output(step.output, step.result)
        for one in (one for core_outputs in outputs.values() for one in core_outputs.outputs):
            self._deliver(one.request_id, one.new_token_ids, one.finish_reason is not None)
        self.check()

    def _deliver(self, request_id: str, token_ids: list[int], finished: bool) -> None:
        require(request_id in self.sent, f"{request_id} answers after its abort")
        one = self.sent[request_id]
        one.answer += token_ids
        expected = one.expected if finished else one.expected[: len(one.answer)]
        require(one.answer == expected, f"{request_id} answered {one.answer}, expected {expected}")
        if finished:
            del self.sent[request_id]
            self.num_answered += 1

    def check(self) -> None:
        """Raise :class:`Violation` unless scheduler, pool and KV cache agree with the books."""
        written = {block for step in self.in_flight for block in step.written_blocks}
        check_queues(self.scheduler, self.sent)
        check_books(self.scheduler, self.sent, self.setup.block_size)
        check_seen(self.scheduler)
        check_pool(self.scheduler, written)
        check_kv(self.scheduler, self.sent, self._store)
        check_host(self.scheduler, self.sent, self._store)
        self._worker.check()


def answer_of(tokens: Sequence[int], params: SamplingParams, max_model_len: int) -> list[int]:
    """The answer to a prompt, computed from its tokens alone."""
    prefix = EMPTY_PREFIX
    for token in tokens:
        prefix = extended(prefix, token)
    answer: list[int] = []
    while len(answer) < params.max_tokens and len(tokens) + len(answer) < max_model_len:
        answer.append(sample(prefix, params, len(answer)))
        prefix = extended(prefix, answer[-1])
        if answer[-1] in (params.stop_token_ids or ()):
            break
    return answer


def _make_worker(setup: Setup, store: KvStore) -> Worker:
    if setup.v2_runner:
        return V2Worker(store, setup.max_num_seqs)
    return V1Worker(store, setup.max_num_seqs, asynchronous=setup.depth > 1)
