"""How each way serves one query: what it sends when, and what it takes for the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from stream2llm_rag.bench.observer import Observer
from stream2llm_rag.bench.pace import Pace
from stream2llm_rag.bench.script import Script
from stream2llm_rag.bench.ways import Way, WayKind
from stream2llm_rag.engine.feedback import StepRecord

if TYPE_CHECKING:
    from stream2llm_rag.engine.session import OutputDelta, Session


@dataclass(frozen=True, slots=True)
class StreamedChunk:
    """A chunk for vLLM's own streaming input, which generates ``max_tokens`` tokens after it."""

    token_ids: list[int]
    max_tokens: int


class Target(Protocol):
    """An engine that is open, and the way to ask it."""

    way: Way

    async def ask(self, script: Script, pace: Pace, seen: Observer) -> None:
        """Say the script, each chunk at its time, and return when the answer has ended. Cancelled, it aborts the request."""
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False where requests still hold KV."""
        ...


class Stock(Protocol):
    """What is needed of :class:`~stream2llm_rag.bench.stock.StockEngine`."""

    def listen(self, request_id: str, listener: Callable[[StepRecord], None]) -> None: ...  # noqa: D102

    def forget(self, request_id: str) -> None: ...  # noqa: D102

    def generate(self, request_id: str, token_ids: list[int], max_tokens: int) -> AsyncGenerator[list[int], None]: ...  # noqa: D102

    def converse(self, request_id: str, chunks: AsyncIterator[StreamedChunk]) -> AsyncGenerator[list[int], None]: ...  # noqa: D102

    async def reset_prefix_cache(self) -> bool: ...  # noqa: D102


class Streams(Protocol):
    """What is needed of :class:`~stream2llm_rag.engine.engine.Stream2LLMEngine`."""

    async def open(self, *, on_record: Callable[[StepRecord], None]) -> Session: ...  # noqa: D102

    async def reset_prefix_cache(self) -> bool: ...  # noqa: D102


class NonStreaming:
    """The whole prompt when its last chunk has come."""

    def __init__(self, way: Way, engine: Stock) -> None:
        self.way = way
        self._engine = engine
        self.reset_prefix_cache = engine.reset_prefix_cache

    async def ask(self, script: Script, pace: Pace, seen: Observer) -> None:
        """See :class:`Target`."""
        query, prompt = script.query, script.final_prompt
        await pace.until(query.final_s)
        with _listening(self._engine, query.query_id, seen):
            async with aclosing(self._engine.generate(query.query_id, prompt, query.num_output_tokens)) as answer:
                async for token_ids in answer:
                    seen.answer(token_ids)


class Native:
    """vLLM's own streaming input.

    It only appends, and samples a token after every chunk: these do not count. A query with updates is instead submitted anew
    at each of its chunks, and what was submitted before is aborted.
    """

    def __init__(self, way: Way, engine: Stock) -> None:
        self.way = way
        self._engine = engine
        self.reset_prefix_cache = engine.reset_prefix_cache

    async def ask(self, script: Script, pace: Pace, seen: Observer) -> None:
        """See :class:`Target`."""
        await (self._resubmit if script.query.is_update else self._append)(script, pace, seen)

    async def _append(self, script: Script, pace: Pace, seen: Observer) -> None:
        query = script.query
        num_early = sum(bool(token_ids) for token_ids in script.chunks[:-1])
        num_left = query.num_output_tokens
        with _listening(self._engine, query.query_id, seen):
            async with aclosing(self._engine.converse(query.query_id, _said(script, pace))) as outputs:
                async for token_ids in outputs:
                    early, answer = token_ids[:num_early], token_ids[num_early:]
                    num_early -= len(early)
                    seen.discard(early)
                    seen.answer(answer)
                    num_left -= len(answer)
                    if num_left <= 0:
                        return  # vLLM does not always end the stream by itself

    async def _resubmit(self, script: Script, pace: Pace, seen: Observer) -> None:
        query = script.query
        with ExitStack() as listening:  # to the end: a step that runs while its request is aborted tells of it afterwards
            request_ids = [f"{query.query_id}/{index}" for index in range(len(query.chunks))]
            for request_id in request_ids:
                listening.enter_context(_listening(self._engine, request_id, seen))
            await self._resubmit_as(request_ids, script, pace, seen)

    async def _resubmit_as(self, request_ids: Sequence[str], script: Script, pace: Pace, seen: Observer) -> None:
        query = script.query
        async with anyio.create_task_group() as group:
            before = None
            for index, chunk in enumerate(query.chunks):
                await pace.until(query.arrival_s + chunk.after_s)
                prompt = script.prompt(index)
                if before is not None:
                    before.cancel()
                    seen.replaced(len(prompt) - chunk.num_tokens)
                before = anyio.CancelScope()
                if prompt:
                    is_final = index == len(query.chunks) - 1
                    max_tokens = query.num_output_tokens if is_final else 1
                    tell = seen.answer if is_final else seen.discard
                    group.start_soon(self._submit, before, request_ids[index], prompt, max_tokens, tell)

    async def _submit(
        self,
        scope: anyio.CancelScope,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        tell: Callable[[Sequence[int]], None],
    ) -> None:
        with scope:
            async with aclosing(self._engine.generate(request_id, prompt, max_tokens)) as answer:
                async for token_ids in answer:
                    tell(token_ids)


class Streaming:
    """Ours: every chunk when it comes, and the answer after the last."""

    def __init__(self, way: Way, engine: Streams) -> None:
        self.way = way
        self._engine = engine
        self.reset_prefix_cache = engine.reset_prefix_cache

    async def ask(self, script: Script, pace: Pace, seen: Observer) -> None:
        """See :class:`Target`."""
        async with aclosing(self.outputs(script, pace, seen)) as outputs:
            async for output in outputs:
                seen.answer(output.token_ids)

    async def outputs(
        self, script: Script, pace: Pace, seen: Observer, num_logprobs: int | None = None
    ) -> AsyncGenerator[OutputDelta, None]:
        """Say the script, and yield what comes of it, with as many log-probabilities as wanted. Left early, it aborts."""
        query = script.query
        async with await self._engine.open(on_record=seen.take) as session:
            for index in range(len(query.chunks) - 1):
                await pace.until(query.arrival_s + query.chunks[index].after_s)
                await self._say(session, script, index)
            await pace.until(query.final_s)
            suffix = await self._say_last(session, script)
            async for output in await session.finish(suffix, _greedy(query.num_output_tokens, num_logprobs)):
                yield output

    async def _say(self, session: Session, script: Script, index: int) -> None:
        num_remaining = len(script.chunks) - 1 - index if self.way.hints else None
        if script.query.chunks[index].num_kept is None:
            await session.append(script.chunks[index], num_remaining=num_remaining)
        elif prompt := script.prompt(index):
            await session.update(prompt, num_remaining=num_remaining)

    async def _say_last(self, session: Session, script: Script) -> list[int]:
        """Replace the context if the last chunk does, and return what the finish adds."""
        if script.query.chunks[-1].num_kept is None:
            return script.chunks[-1]
        *context, question = script.final_prompt
        if context:
            await session.update(context, num_remaining=0 if self.way.hints else None)
        return [question]


@contextmanager
def _listening(engine: Stock, request_id: str, seen: Observer) -> Iterator[None]:
    engine.listen(request_id, seen.take)
    try:
        yield
    finally:
        engine.forget(request_id)


async def _said(script: Script, pace: Pace) -> AsyncIterator[StreamedChunk]:
    """The chunks for vLLM's own streaming input, each at its time."""
    query = script.query
    for index, (chunk, token_ids) in enumerate(zip(query.chunks, script.chunks, strict=True)):
        await pace.until(query.arrival_s + chunk.after_s)
        is_last = index == len(script.chunks) - 1
        if token_ids:
            yield StreamedChunk(token_ids, query.num_output_tokens if is_last else 1)


def _greedy(max_tokens: int, num_logprobs: int | None = None) -> dict[str, Any]:
    return {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "detokenize": False, "logprobs": num_logprobs}


KINDS = {WayKind.NON_STREAMING: NonStreaming, WayKind.NATIVE: Native, WayKind.STREAMING: Streaming}
