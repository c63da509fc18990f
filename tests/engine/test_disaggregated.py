"""Two engines as one. The pair is shared, and the last two tests kill it: the prefill engine first, then the other."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import psutil
import pytest

from stream2llm_rag import DisaggregatedEngine, Document, StreamingRAG
from stream2llm_rag.errors import EngineDied, InvalidInputError
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations.langchain import StreamingRAGRunnable
from stream2llm_rag.integrations.llama_index import StreamingRAGQueryEngine
from stream2llm_rag.retrievers.base import InMemoryRetriever

from .cases import GREEDY, Reference, collect, prompt, wrong_seeds
from .conftest import computed
from .disaggregated import SWAPPING, Watched, WithholdingWire, kill, pair, processes_of, wrong_with_a_loss

SEEDS = range(500, 512)
pytestmark = pytest.mark.timeout(600)  # two engines start, one after the other


@pytest.fixture(scope="module")
async def engine(model_path: Path) -> AsyncIterator[DisaggregatedEngine]:
    """The prefill engine has little room, and evicts somebody at random before every other step; what it takes is kept."""
    async with pair(model_path, chaos=0.5, prefill=SWAPPING) as engine:
        processes = processes_of(engine.prefill) + processes_of(engine.decode)
        yield engine
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


async def test_random_streams_answer_as_stock_vllm_does_on_kv_that_was_handed_over(
    engine: DisaggregatedEngine, reference: Reference
) -> None:
    watched = Watched(engine)
    assert await wrong_seeds(watched, reference, SEEDS) == []  # type: ignore[arg-type]  # has what a case needs
    assert len(watched.sessions) > len(SEEDS) // 2
    assert watched.not_handed_over() == []
    core = engine.prefill.stats().cores[0]
    assert core.num_swap_evictions == core.num_evictions > 0
    assert core.num_blocks_in > 0


async def test_without_the_offer_the_decode_engine_computes_the_prompt(
    engine: DisaggregatedEngine, reference: Reference
) -> None:
    """The control of the test above: equal answers alone prove no hand-over."""
    final, usual = prompt(300, 1), engine._wire
    engine._wire = WithholdingWire(engine.prefill.wire, engine.decode.wire)
    try:
        watched = Watched(engine)
        async with await watched.open(final[:200]) as session:
            assert await collect(await session.finish(final[200:], GREEDY)) == await reference.answer(final)
    finally:
        engine._wire = usual
    assert watched.not_handed_over() == ["0 of 300: withheld"]


async def test_the_pipeline_runs_on_it_and_its_result_tells_of_the_hand_over(engine: DisaggregatedEngine) -> None:
    retriever = InMemoryRetriever.from_documents([Document("Cancel it by calling cancel().", "https://docs.example/1")])
    result = await StreamingRAG(engine, retriever, sampling=GREEDY).answer("How?")
    assert len(result.token_ids) == GREEDY["max_tokens"]
    assert (result.received_tokens, result.handover_error) == (result.prompt_tokens, None)


class OnThisLoop(BackgroundEngine):
    """An engine that is open already, on the loop that runs now."""

    def __init__(self, engine: DisaggregatedEngine) -> None:
        super().__init__(engine)
        self._loop, self._thread = asyncio.get_running_loop(), threading.current_thread()
        self._state, self._process_id = "open", os.getpid()


async def test_both_frameworks_run_on_it_and_tell_of_the_hand_over(engine: DisaggregatedEngine) -> None:
    background = OnThisLoop(engine)
    retriever = InMemoryRetriever.from_documents([Document("Await it after calling cancel().", "https://docs.example/2")])
    result = await StreamingRAG(engine, retriever, sampling=GREEDY).answer("How?")
    chain = StreamingRAGRunnable(engine=background, retriever=retriever, sampling=GREEDY)
    message = await chain.ainvoke("How?")
    response = await StreamingRAGQueryEngine(background, retriever, sampling=GREEDY).aquery("How?")
    assert message.text == str(response) == result.text
    for told in (message.response_metadata, response.metadata):
        assert told is not None
        assert (told["received_tokens"], told["handover_error"]) == (result.prompt_tokens, None)


async def test_what_is_refused_or_left_early_leaves_nothing_behind(engine: DisaggregatedEngine, reference: Reference) -> None:
    final = prompt(200, 2)
    async with await engine.open(final) as session:
        with pytest.raises(InvalidInputError, match="temperature"):
            await session.finish([5], {"temperature": -1})
    async with await engine.open(final) as session:
        await anext(await session.finish([5], {**GREEDY, "max_tokens": 900}))
    assert engine.stats().num_sessions == 0
    assert await collect(engine.generate(final, GREEDY)) == await reference.answer(final)
    assert engine.decode.stats().cores[0].num_used_blocks == 0


async def test_when_the_prefill_engine_is_killed_every_stream_is_answered(
    engine: DisaggregatedEngine, reference: Reference
) -> None:
    final, other = prompt(400, 3), prompt(400, 6)
    async with await engine.open(final[:300]) as partial, await engine.open(other[:300]) as offered:
        outputs = await offered.finish(other[300:], GREEDY)  # nobody has fetched its KV when the engine dies
        await computed(offered, 400)
        seeds = range(600, 608)
        assert await wrong_with_a_loss(engine, engine.prefill, reference, seeds) == ([], [], 0)
        answer = await reference.answer(final)
        assert await collect(outputs) == await reference.answer(other)
        assert offered.stats.handover_error is not None
        assert await collect(await partial.finish(final[300:], GREEDY)) == answer
        assert "the prefill engine does not serve" in str(partial.stats.handover_error)
    async with await engine.open(final[:300]) as late:
        assert await collect(await late.finish(final[300:], GREEDY)) == answer
        assert late.stats.overlap_tokens == 0


async def test_when_the_decode_engine_is_killed_every_stream_ends_in_an_error(engine: DisaggregatedEngine) -> None:
    async with await engine.open(prompt(100, 4)) as answering, await engine.open(prompt(100, 5)) as partial:
        outputs = await answering.finish([5], {**GREEDY, "max_tokens": 900})
        await anext(outputs)
        kill(engine.decode)
        with anyio.fail_after(60):
            with pytest.raises(EngineDied):
                await collect(outputs)
            for call in (partial.append([5]), partial.finish([5]), engine.open()):
                with pytest.raises(EngineDied):
                    await call
