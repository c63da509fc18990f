"""Engines without a model, for rounds in which nothing but the driver is under test."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel

from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.simulation.trace import Chunk, Query


def step_s(num_tokens: int) -> float:
    """How long the fake core says that a step took."""
    return 1e-4 + 1e-6 * num_tokens


class FakeTokenizer:
    def __len__(self) -> int:
        return 2048

    def decode(self, token_ids: list[int]) -> str:
        return " ".join(map(str, token_ids))


class FakeStreams(FakeEngine):
    """Ours."""

    def __init__(self) -> None:
        super().__init__(FakeTokenizer(), num_answer_tokens=1)
        self.num_resets = 0

    async def reset_prefix_cache(self) -> bool:
        await anyio.lowlevel.checkpoint()
        self.num_resets += 1
        return not self.sessions


class FakeStock:
    """Stock vLLM: answers 7s, and after ``num_slots`` conversations have begun computes nothing any more."""

    def __init__(self, num_slots: int = 1000) -> None:
        self.num_slots = num_slots
        self.busy_until_s = 0.0
        self.num_begun = 0
        self.num_live = 0
        self.heard: dict[str, list[list[int]]] = {}
        self.listeners: dict[str, Callable[[StepRecord], None]] = {}

    def listen(self, request_id: str, listener: Callable[[StepRecord], None]) -> None:
        self.listeners[request_id] = listener

    def forget(self, request_id: str) -> None:
        del self.listeners[request_id]

    async def reset_prefix_cache(self) -> bool:
        await anyio.lowlevel.checkpoint()
        return self.num_live == 0

    async def generate(self, request_id: str, token_ids: list[int], max_tokens: int) -> AsyncGenerator[list[int], None]:
        self.num_live += 1
        try:
            await self._hear(request_id, token_ids)
            for _ in range(max_tokens):
                yield [7]
        finally:
            self.num_live -= 1

    async def converse(self, request_id: str, chunks: AsyncIterator[Any]) -> AsyncGenerator[list[int], None]:
        self.num_begun += 1
        has_slot = self.num_begun <= self.num_slots
        self.num_live += 1
        try:
            async for chunk in chunks:
                if not has_slot:
                    await anyio.sleep_forever()
                await self._hear(request_id, chunk.token_ids)
                yield [7] * chunk.max_tokens
            await anyio.sleep_forever()  # vLLM's stream does not always end by itself
        finally:
            self.num_live -= 1

    async def _hear(self, request_id: str, token_ids: list[int]) -> None:
        await anyio.lowlevel.checkpoint()
        self.heard.setdefault(request_id, []).append(list(token_ids))
        started_s = max(time.monotonic(), self.busy_until_s)
        self.busy_until_s = started_s + step_s(len(token_ids))
        self.listeners[request_id](StepRecord(request_id, StepKind.COMPUTED, started_s, self.busy_until_s, len(token_ids)))


def query(name: str, *chunks: tuple[int, int | None], num_output_tokens: int = 1) -> Query:
    """A query whose chunks, as (tokens, tokens kept), come at once."""
    made = tuple(Chunk(0.0, num_tokens, num_kept) for num_tokens, num_kept in chunks)
    return Query(name, 0.0, made, num_output_tokens)
