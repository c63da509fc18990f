from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream2llm_rag import Replace, StreamingRAG
from stream2llm_rag.documents import Document
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.errors import IndexFormatError, InvalidInputError, RetrievalError
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.retrievers.diskann import DiskANNIndex, DiskANNRetriever, LatentSemanticEmbedding, Thresholds
from stream2llm_rag.retrievers.diskann.embedding import embed_documents

from .conftest import GRAPH, Built

EAGER = Thresholds(slack=-100.0, age=0, progress=0.0)


@pytest.fixture
def slow(built: Built) -> Iterator[DiskANNIndex]:
    """One whose searches give a snapshot at each hop that the loop has time to see."""
    with DiskANNIndex.open(built.directory, hop_delay_s=0.002) as index:
        yield index


class Embedding:
    """Questions are numbers of queries."""

    def __init__(self, built: Built) -> None:
        self._queries = built.queries

    def __call__(self, question: str) -> Any:
        return self._queries[int(question)]


async def collect(deltas: AsyncIterator[Replace]) -> list[Replace]:
    return [delta async for delta in deltas]


async def test_documents_stream_and_the_last_list_is_that_of_the_search(slow: DiskANNIndex, built: Built) -> None:
    retriever = DiskANNRetriever(slow, Embedding(built), top_k=8, complexity=60, thresholds=EAGER)
    assert isinstance(retriever, StreamingRetriever)
    deltas = await collect(retriever.stream("3"))
    found = slow.nearest(built.queries[3], top_k=8, complexity=60)
    assert [document.source for document in deltas[-1].documents] == [f"doc:{row}" for row in found.ids]
    assert [document.score for document in deltas[-1].documents] == [-distance for distance in found.distances]
    assert len(deltas) > 3
    assert [delta.num_remaining == 0 for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    for one, other in pairwise(deltas[1:]):
        assert {each.source for each in one.documents} != {each.source for each in other.documents} or other is deltas[-1]


@pytest.mark.parametrize("emit", ["stable", "eager", "final"])
async def test_the_result_is_the_same_however_eagerly_it_is_shown(slow: DiskANNIndex, built: Built, emit: Any) -> None:
    deltas = await collect(DiskANNRetriever(slow, Embedding(built), emit=emit).stream("0"))
    assert [document.source for document in deltas[-1].documents] == [
        f"doc:{row}" for row in slow.nearest(built.queries[0]).ids
    ]
    if emit == "final":
        assert [len(delta.documents) for delta in deltas] == [0, 10]


async def test_its_snapshots_stand_on_the_timeline(slow: DiskANNIndex, built: Built) -> None:
    deltas = await collect(DiskANNRetriever(slow, Embedding(built), thresholds=EAGER).stream("0"))
    events = [event for delta in deltas for event in delta.events]
    assert [event.kind for event in events] == ["embed", *["snapshot"] * (len(deltas) - 1)]
    assert events[-1].title is not None
    assert events[-1].title.startswith("all, final after")
    assert all(one.ended_s <= other.ended_s for one, other in pairwise(events))


async def test_leaving_a_stream_ends_its_search(built: Built) -> None:
    with DiskANNIndex.open(built.directory, hop_delay_s=0.01) as index:
        stream = DiskANNRetriever(index, Embedding(built), thresholds=EAGER).stream("0")
        await anext(stream)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert not index._workers._searches


async def test_it_answers_through_the_pipeline(slow: DiskANNIndex, built: Built, model_path: Path) -> None:
    from transformers import AutoTokenizer

    engine = FakeEngine(AutoTokenizer.from_pretrained(model_path), max_model_len=16384)
    retriever = DiskANNRetriever(slow, Embedding(built), top_k=5, thresholds=EAGER)
    streamed, usual = [await StreamingRAG(engine, retriever).answer("4", streaming=streaming) for streaming in (True, False)]
    found = [f"doc:{row}" for row in slow.nearest(built.queries[4], top_k=5).ids]
    assert sorted(streamed.sources) == sorted(usual.sources) == sorted(found)
    assert streamed.retrieval_error is None


class LangChainLike:
    def __init__(self, built: Built) -> None:
        self.built = built

    def embed_query(self, text: str) -> list[float]:
        return [float(number) for number in self.built.queries[int(text)]]


class AsyncLangChainLike(LangChainLike):
    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0)
        return super().embed_query(text)

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("it has one that is awaited")


class LlamaIndexLike:
    def __init__(self, built: Built) -> None:
        self.built = built

    def get_query_embedding(self, query: str) -> list[float]:
        return [float(number) for number in self.built.queries[int(query)]]


@pytest.mark.parametrize("kind", [Embedding, LangChainLike, AsyncLangChainLike, LlamaIndexLike])
async def test_any_embedding_will_do(index: DiskANNIndex, built: Built, kind: Any) -> None:
    deltas = await collect(DiskANNRetriever(index, kind(built)).stream("2"))
    assert [document.source for document in deltas[-1].documents] == [
        f"doc:{row}" for row in index.nearest(built.queries[2]).ids
    ]


async def test_a_coroutine_function_will_do(index: DiskANNIndex, built: Built) -> None:
    async def embed(question: str) -> Any:
        return built.queries[int(question)]

    for function in (embed, lambda question: embed(question)):
        assert len((await collect(DiskANNRetriever(index, function).stream("2")))[-1].documents) == 10


async def test_what_fails_is_a_retrieval_error(index: DiskANNIndex, built: Built) -> None:
    def fail(question: str) -> Any:
        raise RuntimeError("no model")

    with pytest.raises(RetrievalError, match=r"could not be embedded.*no model"):
        await collect(DiskANNRetriever(index, fail).stream("?"))
    with pytest.raises(InvalidInputError, match="32 dimensions"):
        await collect(DiskANNRetriever(index, lambda question: np.ones(31)).stream("?"))
    with pytest.raises(InvalidInputError, match="A question is text"):
        await collect(DiskANNRetriever(index, Embedding(built)).stream(" "))


def test_a_retriever_that_could_not_work_is_refused(index: DiskANNIndex, built: Built, tmp_path: Path) -> None:
    for settings, words in (
        ({"emit": "soon"}, "emit is one of stable, eager, final"),
        ({"top_k": 20, "complexity": 10}, "cannot be found among"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            DiskANNRetriever(index, Embedding(built), **settings)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="embed is a function"):
        DiskANNRetriever(index, None)
    DiskANNIndex.build(built.vectors[:50], tmp_path / "bare", graph=GRAPH)
    with DiskANNIndex.open(tmp_path / "bare") as bare, pytest.raises(InvalidInputError, match="with documents"):
        DiskANNRetriever(bare, Embedding(built))


async def test_of_an_index_with_fewer_documents_all_come(tmp_path: Path) -> None:
    documents = [Document("A task is cancelled by its method cancel().", "doc:1"), Document("open() opens a file.", "doc:2")]
    embedding, vectors = embed_documents(documents)
    DiskANNIndex.build(vectors, tmp_path / "index", documents=documents, metric="cosine", graph=GRAPH)
    with DiskANNIndex.open(tmp_path / "index") as index:
        deltas = await collect(DiskANNRetriever(index, embedding, top_k=10).stream("How do I cancel a task?"))
    assert [document.source for document in deltas[-1].documents] == ["doc:1", "doc:2"]


TOPICS = {
    "tasks": "cancel task event loop await coroutine schedule timeout",
    "files": "open read write file path directory temporary rename",
    "network": "socket connect server address port packet protocol",
}


def corpus() -> list[Document]:
    dice = np.random.default_rng(0)
    return [
        Document(" ".join(dice.choice(words.split(), 12)), f"{topic}:{number}")
        for topic, words in TOPICS.items()
        for number in range(30)
    ]


async def test_the_built_in_embedding_finds_documents_on_the_subject(tmp_path: Path) -> None:
    documents = corpus()
    embedding, vectors = embed_documents(documents, num_dims=8)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(documents)), rel=1e-5)
    DiskANNIndex.build(vectors, tmp_path / "index", documents=documents, metric="cosine", graph=GRAPH, extras=embedding.save)
    loaded = LatentSemanticEmbedding.load(tmp_path / "index")
    with DiskANNIndex.open(tmp_path / "index") as index:
        index.verify()
        retriever = DiskANNRetriever(index, loaded, top_k=5, complexity=50)
        for topic, question in (("tasks", "How do I cancel a coroutine?"), ("network", "Which port does the server use?")):
            deltas = await collect(retriever.stream(question))
            assert {document.source.partition(":")[0] for document in deltas[-1].documents} == {topic}
        with pytest.raises(RetrievalError, match="No word of the question"):
            await collect(retriever.stream("Zebras?"))


def test_an_embedding_is_loaded_as_it_was_saved_and_holds_no_pickle(tmp_path: Path) -> None:
    embedding, vectors = embed_documents(corpus(), num_dims=8)
    embedding.save(tmp_path)
    texts = ["cancel the task", "read a file"]
    assert np.array_equal(LatentSemanticEmbedding.load(tmp_path).embed(texts), embedding.embed(texts))
    with np.load(tmp_path / "embedding.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype for name in arrays} == {"weights": np.float32, "components": np.float32}
    assert vectors.dtype == np.float32


def test_a_damaged_embedding_is_said(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="vectors of your own"):
        LatentSemanticEmbedding.load(tmp_path)
    embed_documents(corpus(), num_dims=8)[0].save(tmp_path)
    arrays = (tmp_path / "embedding.npz").read_bytes()
    (tmp_path / "embedding.npz").write_bytes(arrays[:200])
    with pytest.raises(IndexFormatError, match="cannot be read"):
        LatentSemanticEmbedding.load(tmp_path)
    (tmp_path / "embedding.npz").write_bytes(arrays)
    (tmp_path / "embedding.json").write_text(json.dumps({"version": 1, "vocabulary": ["one"]}))
    with pytest.raises(IndexFormatError, match="1 words"):
        LatentSemanticEmbedding.load(tmp_path)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="cannot be fitted"):
        LatentSemanticEmbedding.fit(["...", "!"])
    with pytest.raises(InvalidInputError, match="'empty' has no word"):
        embed_documents([*corpus(), Document("...", "empty")])
