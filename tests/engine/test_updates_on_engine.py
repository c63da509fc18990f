"""A vector search on the real engine: a context that is refined while it streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import pytest

from stream2llm_rag import ContextDelta, Document, StreamingRAG
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.prompt import Order
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.diskann import DiskANNIndex, DiskANNRetriever, GraphParameters
from stream2llm_rag.retrievers.recording import Recording, RecordingRetriever
from stream2llm_rag.timeline import Event, EventKind

from .cases import GREEDY, Reference

WORDS = ["task", "cancel", "await", "loop", "event", "future", "gather", "shield", "timeout", "queue", "lock", "stream"]
MAX_WAIT_S = 60.0


class Stepwise:
    """Brings what was recorded, each delta as soon as the engine has computed tokens of the one before."""

    def __init__(self, recording: Recording) -> None:
        self._deltas = [timed.delta for timed in recording.deltas]
        self._computed = anyio.Event()

    def note(self, event: Event) -> None:
        if event.kind is EventKind.COMPUTED:
            self._computed.set()

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        for delta in self._deltas[:-1]:
            self._computed = anyio.Event()
            yield delta
            if delta.documents:
                with anyio.fail_after(MAX_WAIT_S):
                    await self._computed.wait()
        yield self._deltas[-1]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dice = np.random.default_rng(0)
    documents = [Document(" ".join(dice.choice(WORDS, 60)), f"doc:{row}") for row in range(600)]
    directory = tmp_path_factory.mktemp("index") / "index"
    vectors = dice.normal(size=(600, 16))
    DiskANNIndex.build(vectors, directory, documents=documents, graph=GraphParameters(degree=8, build_complexity=20))
    return directory


async def test_answers_are_stock_vllm_s_and_documents_that_stay_at_their_places_invalidate_less(
    engine: Stream2LLMEngine, reference: Reference, directory: Path
) -> None:
    with DiskANNIndex.open(directory, hop_delay_s=0.005) as index:
        retriever = RecordingRetriever(
            DiskANNRetriever(index, lambda _: np.full(16, 0.3), top_k=12, complexity=40, beam_width=1, emit="eager")
        )
        async for _ in retriever.stream("How?"):
            pass
    [recording] = retriever.recordings
    assert len(recording.deltas) >= 4

    async def answer(order: Order) -> RAGResult:
        stepwise = Stepwise(recording)
        rag = StreamingRAG(engine, stepwise, sampling=GREEDY, order=order)
        async with rag.stream("How?", on_event=stepwise.note) as answer:
            async for _ in answer:
                pass
            prompt = [*answer._prompt.context_ids, *answer._prompt.suffix_ids]
        assert list(answer.result.token_ids) == await reference.answer(prompt)
        assert sorted(answer.result.sources) == sorted(each.source for each in recording.deltas[-1].delta.documents)
        return answer.result

    stable, ranked = await answer("stable"), await answer("rank")
    print(f"tokens invalidated: {stable.invalidated_tokens} kept at their places, {ranked.invalidated_tokens} by rank")
    assert stable.invalidated_tokens < ranked.invalidated_tokens
