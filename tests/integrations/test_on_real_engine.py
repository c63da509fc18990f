"""Both frameworks on the real engine: what overlaps, and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from benchmarks.frameworks import Slow, measure, show
from stream2llm_rag import ContextDelta, Stream2LLMEngine
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations.langchain import StreamingRAGRunnable
from stream2llm_rag.retrievers.base import InMemoryRetriever

from .conftest import documents

GREEDY = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


async def test_a_fused_chain_computes_while_it_retrieves_and_a_stock_one_does_not(real: BackgroundEngine) -> None:
    rows = await measure(real, Slow(num_pages=4, num_sentences=20, gap_s=0.2))
    print("\n" + show(rows))
    orders = {row.chain: row.order for row in rows}
    assert orders["LangChain, stock"] == orders["LlamaIndex, stock"] == ("retrieved", "first_token")
    assert orders["LangChain, fused"] == orders["LlamaIndex, fused"] == ("prefill", "retrieved", "first_token")


async def test_a_third_of_64_streams_is_cancelled_midway_and_the_rest_is_right(real: BackgroundEngine) -> None:
    rag = StreamingRAGRunnable(
        engine=real, retriever=InMemoryRetriever.from_documents(documents(2), gap_s=0.05), sampling=GREEDY
    )
    alone = {number: (await rag.ainvoke(f"Question {number}?")).text for number in range(1, 64, 13)}
    texts: dict[int, str] = {}

    async def ask(number: int) -> None:
        texts[number] = "".join([chunk.text async for chunk in rag.astream(f"Question {number}?")])

    tasks = [asyncio.create_task(ask(number)) for number in range(64)]
    engine = real.engine
    assert isinstance(engine, Stream2LLMEngine)
    while engine.stats().num_sessions < 32:
        await anyio.lowlevel.checkpoint()
    for task in tasks[::3]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[::3]] == [asyncio.CancelledError] * 22
    assert {number: texts[number] for number in alone if number % 3} == {n: text for n, text in alone.items() if n % 3}
    assert len(texts) == 42
    assert engine.stats().num_sessions == 0
    assert not real._transfers


async def test_abatch_keeps_to_max_concurrency(real: BackgroundEngine) -> None:
    engine = real.engine
    assert isinstance(engine, Stream2LLMEngine)
    found = InMemoryRetriever.from_documents(documents(2), gap_s=0.02)
    seen: list[int] = []

    class Watching:
        async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
            async for delta in found.stream(query):
                seen.append(engine.stats().num_sessions)
                yield delta

    rag = StreamingRAGRunnable(engine=real, retriever=Watching(), sampling=GREEDY)
    questions = [f"Question {number}?" for number in range(8)]
    alone = [(await rag.ainvoke(question)).text for question in questions[:2]]
    seen.clear()
    answers = await rag.abatch(questions, {"max_concurrency": 3})
    assert [answer.text for answer in answers[:2]] == alone
    assert max(seen) == 3
    assert engine.stats().num_sessions == 0


@pytest.mark.parametrize("streaming", [True, False])
def test_calls_that_are_not_async_answer_from_a_plain_thread(real: BackgroundEngine, streaming: bool) -> None:
    rag = StreamingRAGRunnable(
        engine=real, retriever=InMemoryRetriever.from_documents(documents(2)), sampling=GREEDY, streaming=streaming
    )
    assert rag.invoke("How?").text == "".join(chunk.text for chunk in rag.stream("How?"))
