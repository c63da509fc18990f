"""The front end's side of the wire: how sessions reach the engine core through vLLM's ``AsyncLLM``.

Operations before the finish go to the core alone; the output processor learns of a request only at its finish, with the whole
prompt, so that a partial request costs nothing there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from copy import copy
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.feedback import FeedbackHub
from stream2llm_rag.engine.inputs import checked_ids
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.protocol import Op, OpKind
from stream2llm_rag.engine.session import OutputDelta, Session, Submission, TokenIds
from stream2llm_rag.errors import EngineDied, InvalidInputError, LifecycleError, UnsupportedError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_REFUSALS = (ValueError, VLLMValidationError)
# As AsyncMPClient writes to the core, and as the core reads (vllm/v1/engine/core.py, process_input_sockets).
_encoder = MsgpackEncoder()
_sampling_decoder = MsgpackDecoder(SamplingParams)
_request_decoder = MsgpackDecoder(EngineCoreRequest)


class VllmWire:
    """Sends what sessions say to the engine core of ``llm``, and brings outputs and records back."""

    def __init__(self, llm: AsyncLLM, secret: str, hub: FeedbackHub, lifeline: Lifeline) -> None:
        self.lifeline = lifeline
        self.max_model_len: int = llm.model_config.max_model_len
        self.vocab_size: int = llm.model_config.get_vocab_size()
        self._llm = llm
        self._secret = secret
        self._hub = hub
        self._templates: dict[str, EngineCoreRequest] = {}

    async def send(self, session: Session, op: Op, token_ids: list[int], arrival_time: float) -> None:
        """Send an append or an update."""
        template = self._templates.get(session.request_id)
        if template is None:
            template = await self._request(session, token_ids, SamplingParams(max_tokens=1), arrival_time)
            self._templates[session.request_id] = template
        request = copy(template)
        request.prompt_token_ids = token_ids
        request.arrival_time = arrival_time
        request.sampling_params = self._sign(template.sampling_params, op)
        with self._alive():
            await self._llm.engine_core.add_request_async(request)

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        """Send the finish, and register for its outputs.

        A prompt whose KV comes from another engine is an ordinary request: there is nothing to plan for it.
        """
        request = await self._request_of(session, submission)
        if not (submission.opens and _comes_from_elsewhere(request.sampling_params)):
            request.sampling_params = self._sign(request.sampling_params, Op(OpKind.FINISH, opens=submission.opens))
        collector = RequestOutputCollector(RequestOutputKind.DELTA, request.request_id)
        with self._alive():
            await self._llm._add_request(request, None, None, 0, collector)
        return self._outputs(collector)

    async def check(self, session: Session, submission: Submission) -> None:
        """Raise what :meth:`submit` would raise, and send nothing."""
        await self._request_of(session, submission)

    async def drop(self, session: Session, submitted: bool) -> None:
        """Abort: in the core, and once it may have been submitted in the output processor too."""
        core_id = session.request_id
        self._hub.forget(core_id)
        template = self._templates.pop(session.request_id, None)
        with suppress(EngineDied, LifecycleError), self._alive():  # of an engine that is gone nothing is left to free
            if submitted:
                await self._llm.abort(core_id, internal=True)
            if template is not None:  # the core may know it though the output processor does not
                await self._llm.engine_core.abort_requests_async([core_id])

    async def generate(
        self, prompt: str | TokenIds, sampling: Mapping[str, Any] | SamplingParams
    ) -> AsyncIterator[OutputDelta]:
        """Run a plain request."""
        inputs = prompt if isinstance(prompt, str) else tokens_input(checked_ids(prompt, self.vocab_size))
        params = sampling_params(sampling)
        try:
            async with aclosing(self._llm.generate(inputs, params, f"plain-{uuid4().hex}")) as outputs:
                while (output := await self._next(outputs)) is not None:
                    for completion in output.outputs:
                        yield _delta(completion, output.kv_transfer_params)
        except _REFUSALS as error:
            raise InvalidInputError(f"vLLM refused the request: {error}") from error

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """For calls to the core, which wait for ever when it dies meanwhile. Raises as :meth:`Lifeline.held`."""
        try:
            with self.lifeline.held():
                yield
        except EngineDeadError as error:
            self.lifeline.die(error)
            self.lifeline.check()

    async def _next(self, outputs: AsyncIterator[RequestOutput]) -> RequestOutput | None:
        with self._alive():
            return await anext(outputs, None)

    async def _outputs(self, collector: RequestOutputCollector) -> AsyncIterator[OutputDelta]:
        finished = False
        while not finished:
            with self._alive():
                output = collector.get_nowait() or await collector.get()
            if not isinstance(output, RequestOutput):
                raise UnsupportedError(f"expected generated text, got {type(output).__name__}: is this a generative model?")
            finished = output.finished
            for completion in output.outputs:
                yield _delta(completion, output.kv_transfer_params)

    async def _request_of(self, session: Session, submission: Submission) -> EngineCoreRequest:
        params = sampling_params(submission.sampling)
        return await self._request(session, submission.token_ids, params, submission.arrival_time)

    async def _request(
        self, session: Session, token_ids: list[int], params: SamplingParams, arrival_time: float
    ) -> EngineCoreRequest:
        with self._alive():
            supported_tasks = await self._llm.get_supported_tasks()
        try:
            request = self._llm.input_processor.process_inputs(
                session.request_id,
                tokens_input(token_ids, cache_salt=session.cache_salt),
                params,
                supported_tasks=supported_tasks,
                arrival_time=arrival_time,
                lora_request=session.lora_request,
            )
        except (TypeError, *_REFUSALS) as error:  # some checks compare before they look
            raise InvalidInputError(f"vLLM refused the request: {error}") from error
        request.external_req_id = session.request_id
        request.request_id = session.request_id
        without_prompt = copy(request)  # which was checked, and may be long
        without_prompt.prompt_token_ids = []
        _check_readable(without_prompt, _request_decoder)
        return request

    def _sign(self, params: SamplingParams, op: Op) -> SamplingParams:
        signed = params.clone()
        signed.extra_args = {**(params.extra_args or {}), **protocol.encode(op, self._secret)}
        return signed


def sampling_params(sampling: Mapping[str, Any] | SamplingParams) -> SamplingParams:
    """vLLM's ``SamplingParams`` for what a caller gave, with deltas as output.

    Raises :class:`InvalidInputError` for a field that vLLM does not know or a value that it refuses, and
    :class:`UnsupportedError` for what streams cannot do. ``structured_outputs`` may be a mapping of its fields.
    """
    if isinstance(sampling, SamplingParams):
        params = sampling.clone()
    elif not isinstance(sampling, Mapping):
        raise InvalidInputError(f"sampling must be a mapping or vLLM's SamplingParams, got {type(sampling).__name__}.")
    else:
        try:
            params = SamplingParams(**_with_structured_outputs(sampling))
        except (TypeError, *_REFUSALS) as error:
            raise InvalidInputError(f"sampling={dict(sampling)!r} is not valid for vLLM's SamplingParams: {error}") from error
    _check_readable(params, _sampling_decoder)
    if params.n != 1:
        raise UnsupportedError(f"a stream has one answer, got n={params.n}. Open one session for each answer that you want.")
    if params.prompt_logprobs is not None:
        raise UnsupportedError("prompt_logprobs of a streamed prompt are not available. Leave them out.")
    if protocol.EXTRA_ARGS_KEY in (params.extra_args or {}):
        raise InvalidInputError(f"extra_args[{protocol.EXTRA_ARGS_KEY!r}] belongs to this library. Use another key.")
    params.output_kind = RequestOutputKind.DELTA
    return params


def _check_readable(message: Any, decoder: MsgpackDecoder) -> None:
    """Raise :class:`InvalidInputError` for a message that the engine core could not read.

    vLLM checks values, not their types, and what reads messages in the core ends at one that it cannot read: nothing would
    reach the core any more, and every stream would wait for ever.
    """
    try:
        decoder.decode(_encoder.encode(message))
    except Exception as error:  # the codec raises what it likes
        raise InvalidInputError(f"vLLM's engine core could not read the request: {error}. Pass plain values.") from error


def _with_structured_outputs(sampling: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let a constraint be plain values too, as all other fields can."""
    constraint = sampling.get("structured_outputs")
    if not isinstance(constraint, Mapping):
        return sampling
    return {**sampling, "structured_outputs": StructuredOutputsParams(**constraint)}


def _comes_from_elsewhere(params: SamplingParams) -> bool:
    transfer = (params.extra_args or {}).get("kv_transfer_params")
    return isinstance(transfer, Mapping) and bool(transfer.get("do_remote_prefill"))


def _delta(completion: CompletionOutput, kv_transfer_params: Mapping[str, Any] | None) -> OutputDelta:
    return OutputDelta(
        completion.text, tuple(completion.token_ids), completion.finish_reason, completion.logprobs, kv_transfer_params
    )
