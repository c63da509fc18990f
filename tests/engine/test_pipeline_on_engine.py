"""The whole way on the real engine: a retriever, a prompt, a scheduler, an answer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator

import anyio
import psutil
import pytest

from stream2llm_rag import Append, ContextDelta, Document, Replace, StreamingRAG
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.retrievers.base import InMemoryRetriever, TimedDelta

from .cases import GREEDY, Reference
from .conftest import quiet

WORDS = ["task", "cancel", "await", "loop", "event", "future", "gather", "shield", "timeout", "queue", "lock", "stream"]


def documents(number: int, dice: random.Random) -> list[Document]:
    texts = (" ".join(dice.choice(WORDS) for _ in range(dice.randint(5, 60))) for _ in range(number))
    return [Document(text, f"https://docs.example/{i}") for i, text in enumerate(texts)]


def script(dice: random.Random) -> InMemoryRetriever:
    found = documents(dice.randint(1, 6), dice)
    deltas: list[ContextDelta] = []
    for index in range(len(found)):
        if dice.random() < 0.3:
            deltas.append(Replace(tuple(dice.sample(found[: index + 1], dice.randint(1, index + 1)))))
        else:
            deltas.append(Append((found[index],)))
    return InMemoryRetriever([TimedDelta(0.0, delta) for delta in deltas])


@pytest.mark.parametrize("order", ["stable", "rank"])
async def test_answers_are_those_of_stock_vllm_for_the_final_prompt(
    engine: Stream2LLMEngine, reference: Reference, order: str
) -> None:
    for seed in range(6):
        dice = random.Random(seed)
        rag = StreamingRAG(engine, script(dice), sampling=GREEDY, order=order)  # type: ignore[arg-type]
        streamed, usual = await rag.answer("How?"), await rag.answer("How?", streaming=False)
        async with rag.stream("How?") as answer:
            async for _ in answer:
                pass
            prompt = [*answer._prompt.context_ids, *answer._prompt.suffix_ids]
        assert list(streamed.token_ids) == list(usual.token_ids) == await reference.answer(prompt), f"seed {seed}"


class ScriptOfQuestion:
    def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        return script(random.Random(query)).stream(query)


async def test_200_streams_cancelled_at_random_moments_leave_nothing_behind(tight_engine: Stream2LLMEngine) -> None:
    await quiet(tight_engine)
    before = (len(asyncio.all_tasks()), threading.active_count(), num_sockets(), num_children())
    dice = random.Random(7)

    rag = StreamingRAG(tight_engine, ScriptOfQuestion(), sampling=GREEDY)

    async def ask_and_leave(number: int) -> None:
        num_turns = dice.randint(0, 60)  # of the event loop: how far the stream gets before it is left
        async with rag.stream(f"Question {number}?") as answer, anyio.create_task_group() as tasks:
            tasks.start_soon(read, answer)
            for _ in range(num_turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    async def read(answer: object) -> None:
        async for _ in answer:  # type: ignore[attr-defined]
            pass

    for first in range(0, 200, 50):
        async with anyio.create_task_group() as tasks:
            for number in range(first, first + 50):
                tasks.start_soon(ask_and_leave, number)
    await quiet(tight_engine)
    stats = tight_engine.stats()
    core = stats.cores[0]
    assert (stats.num_sessions, core.num_partial, core.num_idle, core.num_idle_blocks) == (0, 0, 0, 0)
    assert core.num_used_blocks == 0
    assert len(tight_engine._hub._listeners) == 0
    assert tight_engine._running().output_processor.get_num_unfinished_requests() == 0
    after = (len(asyncio.all_tasks()), threading.active_count(), num_sockets(), num_children())
    assert after[0] == before[0]
    assert after[1] <= before[1] + 5  # threads that tokenised, which anyio keeps for later
    assert after[2:] == before[2:]


def num_sockets() -> int:
    return len(psutil.Process().net_connections(kind="all"))


def num_children() -> int:
    return len(psutil.Process().children(recursive=True))
