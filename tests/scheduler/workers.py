"""The two model runners of vLLM without a model: what they remember of requests between steps, and how steps change it.

A step is computed when it is dispatched, before the scheduler goes on: both runners take over a step's data in
``execute_model`` itself, and a GPU runs steps in the order of their dispatch. Only the sampled tokens come back late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stream2llm_rag.simulation.core import runner_output

from .store import Digest, KvStore, Row, Violation

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

FIRST_ANSWER_TOKEN, NUM_ANSWER_TOKENS = 100, 12


def sample(prefix: Digest, params: SamplingParams, num_drawn: int) -> int:
    """The next token: a function of the whole prefix, of the sampling parameters, and of the draw of a seeded generator."""
    draw = () if params.seed is None else (params.seed, num_drawn)
    return FIRST_ANSWER_TOKEN + hash((prefix, params.top_k, draw)) % NUM_ANSWER_TOKENS


class Worker(Protocol):
    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput: ...

    def check(self) -> None:
        """Raise unless what the worker was given is as it was given."""


@dataclass(slots=True)
class _V1Request:
    """``CachedRequestState``, and the row of ``InputBatch`` while it is in the batch. None is a token only the GPU knows."""

    prompt: list[int]
    params: SamplingParams
    block_ids: list[int]
    num_computed: int
    num_drawn: int | None
    prompt_as_received: list[int] = field(init=False)
    output: list[int | None] = field(default_factory=list)
    row: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_as_received = list(self.prompt)


class V1Worker:
    """vllm/v1/worker/gpu_model_runner.py: ``_update_states``, ``_prepare_input_ids``, ``_bookkeeping_sync``."""

    def __init__(self, store: KvStore, max_num_reqs: int, asynchronous: bool) -> None:
        self._store = store
        self._max_num_reqs = max_num_reqs
        self._asynchronous = asynchronous
        self._requests: dict[str, _V1Request] = {}
        self._batch: set[str] = set()
        self._previous_sampled: dict[str, int] = {}

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        self._update_states(output)
        if not output.num_scheduled_tokens:
            return runner_output(output, {})
        rows = [self._row(request_id, num) for request_id, num in output.num_scheduled_tokens.items()]
        last = self._store.compute(rows)
        sampled = {row.request_id: self._sample(row, last[row.request_id]) for row in rows if self._samples(row)}
        self._previous_sampled = sampled
        return runner_output(output, sampled)

    def check(self) -> None:
        for request_id, request in self._requests.items():
            if request.prompt != request.prompt_as_received:
                raise Violation(f"the prompt that the worker holds of {request_id} was changed under its hands")

    def _update_states(self, output: SchedulerOutput) -> None:
        for request_id in output.finished_req_ids:
            self._requests.pop(request_id, None)
            self._batch.discard(request_id)
        cached = output.scheduled_cached_reqs
        self._batch &= output.num_scheduled_tokens.keys() - cached.resumed_req_ids
        for new in output.scheduled_new_reqs:
            self._add(new)
        for index, request_id in enumerate(cached.req_ids):
            self._continue(request_id, index, cached)
        if self._batch != output.num_scheduled_tokens.keys():
            raise Violation(f"scheduled {set(output.num_scheduled_tokens)}, but the batch holds {self._batch}")

    def _add(self, new: NewRequestData) -> None:
        known = self._requests.get(new.req_id)
        num_drawn = 0 if new.sampling_params.seed is not None else None
        if known is not None:  # `_update_streaming_request` keeps the generator that the request has, or has not
            num_drawn = known.num_drawn
        request = _V1Request(new.prompt_token_ids, new.sampling_params, new.block_ids[0], new.num_computed_tokens, num_drawn)
        self._requests[new.req_id] = request
        self._batch.discard(new.req_id)
        self._enter_batch(new.req_id, request)

    def _continue(self, request_id: str, index: int, cached: CachedRequestData) -> None:
        if request_id not in self._requests:
            raise Violation(f"{request_id} goes on, but the worker does not know it")
        request = self._requests[request_id]
        request.num_computed = cached.num_computed_tokens[index]
        num_output = cached.num_output_tokens[index]
        if num_output < len(request.output):
            del request.output[num_output:]
            del request.row[len(request.prompt) + num_output :]
        new_block_ids = cached.new_block_ids[index]
        if request_id in cached.resumed_req_ids:
            request.block_ids = list(new_block_ids[0])
        elif new_block_ids is not None:
            request.block_ids.extend(new_block_ids[0])
        if request_id not in self._batch:
            if self._asynchronous and num_output:
                request.output = list(cached.all_token_ids[request_id][-num_output:])
            self._enter_batch(request_id, request)

    def _enter_batch(self, request_id: str, request: _V1Request) -> None:
        if len(self._batch) >= self._max_num_reqs:
            raise Violation(f"{request_id} is one more than the batch's {self._max_num_reqs}")
        self._batch.add(request_id)
        request.row = [*request.prompt, *request.output]

    def _row(self, request_id: str, num_scheduled: int) -> Row:
        request = self._requests[request_id]
        end = request.num_computed + num_scheduled
        if end > len(request.row):
            raise Violation(f"{request_id} is to compute up to {end}, but the worker knows {len(request.row)} tokens")
        if request.row[end - 1] is None:  # sampled by the step before, and never left the GPU
            request.row[end - 1] = self._previous_sampled.get(request_id)
        tokens = request.row[:end]
        if None in tokens:
            raise Violation(f"{request_id} computes position {tokens.index(None)}, whose token the worker does not have")
        return Row(request_id, tokens, request.num_computed, request.block_ids)  # type: ignore[arg-type]

    def _samples(self, row: Row) -> bool:
        request = self._requests[row.request_id]
        return len(row.tokens) >= len(request.prompt) + len(request.output)

    def _sample(self, row: Row, prefix: Digest) -> int:
        request = self._requests[row.request_id]
        if request.params.seed is not None and request.num_drawn is None:
            raise Violation(f"{row.request_id} has a seed but the worker made no generator for it")
        token = sample(prefix, request.params, request.num_drawn or 0)
        if request.num_drawn is not None:
            request.num_drawn += 1
        request.output.append(None if self._asynchronous else token)
        request.row.append(None if self._asynchronous else token)
        return token


@dataclass(slots=True)
class _V2Request:
    """A slot of ``RequestState``. ``num_computed`` is counted on the GPU: the scheduler's count never reaches it."""

    tokens: list[int]
    prompt_len: int
    params: SamplingParams
    block_ids: list[int]
    num_computed: int


class V2Worker:
    """vllm/v1/worker/gpu/model_runner.py: a request keeps its slot until it finishes or is preempted."""

    def __init__(self, store: KvStore, max_num_reqs: int) -> None:
        self._store = store
        self._max_num_reqs = max_num_reqs
        self._slots: dict[str, _V2Request] = {}

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        for request_id in output.finished_req_ids | output.preempted_req_ids:
            self._slots.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            self._add(new)
        cached = output.scheduled_cached_reqs
        if cached.resumed_req_ids:
            raise Violation(f"{cached.resumed_req_ids} are resumed, which the V2 runner knows only as new requests")
        for request_id, num_computed, block_ids in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            self._continue(request_id, num_computed, block_ids)
        if not output.num_scheduled_tokens:
            return runner_output(output, {})
        rows = [self._row(request_id, num) for request_id, num in output.num_scheduled_tokens.items()]
        last = self._store.compute(rows)
        return runner_output(output, self._finish_step(rows, last))

    def check(self) -> None:
        """It copies all that it is given."""

    def _add(self, new: NewRequestData) -> None:
        self._slots.pop(new.req_id, None)
        if len(self._slots) >= self._max_num_reqs:
            raise Violation(f"{new.req_id} gets no slot: {sorted(self._slots)} hold all {self._max_num_reqs}")
        self._slots[new.req_id] = _V2Request(
            tokens=list(new.prefill_token_ids),
            prompt_len=len(new.prompt_token_ids),
            params=new.sampling_params,
            block_ids=list(new.block_ids[0]),
            num_computed=new.num_computed_tokens,
        )

    def _continue(self, request_id: str, num_computed: int, block_ids: Any) -> None:
        slot = self._slots.get(request_id)
        if slot is None:
            raise Violation(f"{request_id} goes on, but it has no slot")
        if slot.num_computed != num_computed:
            raise Violation(f"{request_id} is at {slot.num_computed} on the GPU, at {num_computed} in the scheduler")
        if block_ids is not None:
            slot.block_ids.extend(block_ids[0])

    def _row(self, request_id: str, num_scheduled: int) -> Row:
        slot = self._slots.get(request_id)
        if slot is None:
            raise Violation(f"{request_id} is scheduled, but it has no slot")
        end = slot.num_computed + num_scheduled
        if end > len(slot.tokens):
            raise Violation(f"{request_id} is to compute up to {end}, but the worker knows {len(slot.tokens)} tokens")
        return Row(request_id, slot.tokens[:end], slot.num_computed, slot.block_ids)

    def _finish_step(self, rows: list[Row], last: dict[str, Digest]) -> dict[str, int]:
        sampled: dict[str, int] = {}
        for row in rows:
            slot = self._slots[row.request_id]
            slot.num_computed = len(row.tokens)
            if slot.num_computed == len(slot.tokens):
                token = sample(last[row.request_id], slot.params, slot.num_computed - slot.prompt_len)
                sampled[row.request_id] = token
                slot.tokens.append(token)
        return sampled
