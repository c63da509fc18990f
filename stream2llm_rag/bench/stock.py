"""Stock vLLM under ``async with``: what streaming is compared with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio.to_thread
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from stream2llm_rag.bench.recording_scheduler import BY_ASYNC
from stream2llm_rag.bench.targets import StreamedChunk
from stream2llm_rag.engine.feedback import FeedbackHub, StepRecord
from stream2llm_rag.engine.metrics import feedback_logger
from stream2llm_rag.errors import EngineDied, LifecycleError

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput

_SHUTDOWN_TIMEOUT_S = 30.0


class StockEngine:
    """vLLM's ``AsyncLLM`` with its own scheduler, which keeps records (:mod:`recording_scheduler`).

    Arguments are vLLM's engine arguments. Answers are greedy, of exactly as many tokens as asked for.
    """

    def __init__(self, model: str | Path, **engine_args: Any) -> None:
        self._args = AsyncEngineArgs(model=str(model), **{"disable_log_stats": True, **engine_args})
        self._hub = _ExternalIds()
        self._llm: AsyncLLM | None = None

    async def __aenter__(self) -> Self:
        self._llm = await anyio.to_thread.run_sync(self._start)
        self._running._run_output_handler()  # records must flow before the first output
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llm, self._llm = self._running, None
        if llm.output_handler is not None:  # else it takes the orderly end of the core for a crash, and logs it
            llm.output_handler.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: llm.shutdown(timeout=_SHUTDOWN_TIMEOUT_S))

    def listen(self, request_id: str, listener: Callable[[StepRecord], None]) -> None:
        """Call ``listener`` with each thing that the core does for the request, until :meth:`forget`."""
        self._hub.listen(request_id, listener)

    def forget(self, request_id: str) -> None:
        """Stop listening."""
        self._hub.forget(request_id)

    async def generate(self, request_id: str, token_ids: list[int], max_tokens: int) -> AsyncGenerator[list[int], None]:
        """The answer to a whole prompt, as its tokens come. Leaving early aborts the request."""
        async with aclosing(self.outputs(request_id, token_ids, max_tokens)) as outputs:
            async for output in outputs:
                yield list(output.token_ids)

    def outputs(
        self, request_id: str, token_ids: list[int], max_tokens: int, num_logprobs: int | None = None
    ) -> AsyncGenerator[CompletionOutput, None]:
        """As :meth:`generate`, with as many log-probabilities of each token as wanted."""
        sampling = _sampling(max_tokens, num_logprobs)
        return _read(self._running.generate(tokens_input(token_ids), sampling, request_id))

    async def converse(self, request_id: str, chunks: AsyncIterator[StreamedChunk]) -> AsyncGenerator[list[int], None]:
        """vLLM's own streaming input: the tokens after each chunk, as they come. Leaving early aborts the request."""

        async def inputs() -> AsyncGenerator[StreamingInput, None]:
            async for chunk in chunks:
                yield StreamingInput(tokens_input(chunk.token_ids), _sampling(chunk.max_tokens))

        async with aclosing(_read(self._running.generate(inputs(), _sampling(1), request_id))) as outputs:
            async for output in outputs:
                yield list(output.token_ids)

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False where requests still hold KV."""
        return bool(await self._running.reset_prefix_cache())

    @property
    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise LifecycleError("this engine is not open. Use it inside: async with StockEngine(...) as engine.")
        return self._llm

    def _start(self) -> AsyncLLM:
        config = self._args.create_engine_config()
        config.scheduler_config.scheduler_cls = BY_ASYNC[bool(config.scheduler_config.async_scheduling)]
        return AsyncLLM.from_vllm_config(config, stat_loggers=[feedback_logger(self._hub)], disable_log_stats=True)


class _ExternalIds(FeedbackHub):
    """The core knows a request by our id with a random suffix (``InputProcessor.assign_request_id``)."""

    def receive(self, payload: Any, engine_index: int = 0) -> None:
        rows = [(row[0].rpartition("-")[0], *row[1:]) for row in payload["records"]]
        super().receive({**payload, "records": rows}, engine_index)


def _sampling(max_tokens: int, num_logprobs: int | None = None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0,
        ignore_eos=True,
        detokenize=False,
        logprobs=num_logprobs,
        output_kind=RequestOutputKind.DELTA,
    )


async def _read(outputs: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[CompletionOutput, None]:
    """What is new in each output, read by a task of its own.

    Left early, that task is cancelled the way of asyncio, once: vLLM awaits something while it aborts the request, and a
    cancelled scope of anyio would cancel that, too.
    """
    found: asyncio.Queue[CompletionOutput | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    found.put_nowait(output.outputs[0])
        finally:
            found.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (output := await found.get()) is not None:
            yield output
        await reader
    except EngineDeadError as error:
        raise EngineDied("a process of the engine is gone. Close this engine and open a new one; its log says why.") from error
    finally:
        reader.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([reader])
