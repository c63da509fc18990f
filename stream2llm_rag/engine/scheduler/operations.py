"""Operations come in: a streaming request opens, grows, changes and becomes whole.

Nothing here may raise for anything that a front end sends: an exception from ``Scheduler.add_request`` ends the core.
"""

from __future__ import annotations

import logging

from vllm.sampling_params import SamplingType
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.feedback import StepKind
from stream2llm_rag.engine.protocol import Op, OpKind, RefusedOpError
from stream2llm_rag.engine.scheduler.losses import Losses
from stream2llm_rag.engine.scheduler.state import NO_ROOM, Stream
from stream2llm_rag.token_ids import common_prefix

logger = logging.getLogger(__name__)


class Operations(Losses):
    """Takes plain requests and operations of streams."""

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

    def _fits_model(self, stream: Stream, op: Op, request: Request) -> bool:
        """Lengths are checked by vLLM for each request, not for their sum; an answer needs room for a token."""
        before = stream.request.num_tokens if op.kind is OpKind.APPEND else 0
        return request.prompt_token_ids is not None and before + request.num_prompt_tokens < self.max_model_len

    def _open(self, request: Request, op: Op) -> None:
        request.resumable = False  # vLLM's own streaming would park it where it cannot be preempted
        partial = op.kind is not OpKind.FINISH
        stream = Stream(request, partial, request.arrival_time, op.num_remaining, since=self._arrived(request))
        self._streams[request.request_id] = stream
        self._num_partial += partial
        self._tell_policy(request, op, request.arrival_time)
        super().add_request(request)
        if partial and self._num_pending(request) <= 0:
            self._detach(request)
            self._place(request)
        if not partial:
            self._feedback.record(request.request_id, StepKind.FINAL, 0, self._clock())

    def _apply(self, stream: Stream, op: Op, chunk: Request) -> None:
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

    def _end_rest(self, stream: Stream, chunk: Request) -> None:
        """The stream has waited, or idled, up to ``chunk``; what comes after is noted apart."""
        if not stream.request.num_in_flight_tokens:
            self._note_rest(stream, self._arrived(chunk))
            stream.last_step = -1

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

    def _replace(self, stream: Stream, chunk: Request) -> int:
        """Change the prompt to the chunk's; KV of the longest common prefix, whose length is returned, stays."""
        request, token_ids = stream.request, chunk.prompt_token_ids
        common = common_prefix(request._all_token_ids, token_ids)
        before = request.num_computed_tokens
        request._all_token_ids[:] = token_ids
        request.prompt_token_ids = list(token_ids)
        request.num_prompt_tokens = len(token_ids)
        request.block_hashes = list(chunk.block_hashes)  # hashed already, in the core's input thread
        keep = min(before, common, len(token_ids) - 1)
        self._forget_changed(request, common)
        if keep < before:
            self._truncate(request, keep)
            stream.num_hit = min(stream.num_hit, request.num_computed_tokens)
            lost = before - request.num_computed_tokens
            self._feedback.record(request.request_id, StepKind.INVALIDATED, lost, self._clock())
        return common

    def _complete(self, stream: Stream, final: Request) -> None:
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
