"""Ordinary retrievers as a source that streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio
import pytest

from stream2llm_rag import Append, ContextDelta, Document, InvalidInputError, Replace, RetrievalError
from stream2llm_rag.integrations import Search, StreamingSource

Find = Callable[[str], Awaitable[Sequence[Document]]]


def named(name: str) -> Document:
    return Document(f"text of {name}", name)


def after(event: anyio.Event | None, *names: str) -> Find:
    async def find(query: str) -> Sequence[Document]:
        if event is not None:
            await event.wait()
        return [named(name) for name in names]

    return find


async def broken(query: str) -> Sequence[Document]:
    raise OSError("no index")


async def read(source: StreamingSource) -> list[ContextDelta]:
    return [delta async for delta in source.stream("How?")]


def test_a_source_needs_a_retriever() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        StreamingSource([])


async def test_each_search_is_appended_as_it_ends_whatever_its_place() -> None:
    gate = anyio.Event()
    source = StreamingSource([Search("slow", after(gate, "a")), Search("fast", after(None, "b", "c"))])
    stream = source.stream("How?")
    first = await anext(stream)
    assert isinstance(first, Append)
    assert [document.source for document in first.documents] == ["b", "c"]
    assert first.num_remaining == 1
    assert [event.source for event in first.events] == ["fast"]
    gate.set()
    second = await anext(stream)
    assert [document.source for document in second.documents] == ["a"]
    assert second.num_remaining == 0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_search_that_cancels_itself_ends_no_other() -> None:
    async def cancelled(query: str) -> Sequence[Document]:
        raise asyncio.CancelledError("inside")

    stream = StreamingSource([Search("first", cancelled), Search("second", after(None, "a"))]).stream("How?")
    assert [document.source for document in (await anext(stream)).documents] == ["a"]
    with pytest.raises(RetrievalError, match="first failed: CancelledError"):
        await anext(stream)


async def test_reranking_replaces_the_context_at_the_end() -> None:
    def rerank(query: str, found: Sequence[Sequence[Document]]) -> list[Document]:
        assert query == "How?"
        return [documents[0] for documents in found]

    source = StreamingSource([Search("one", after(None, "a", "b")), Search("two", after(None, "c"))], rerank=rerank)
    *appended, last = await read(source)
    assert sorted(document.source for delta in appended for document in delta.documents) == ["a", "b", "c"]
    assert isinstance(last, Replace)
    assert [document.source for document in last.documents] == ["a", "c"]


async def test_a_search_that_fails_does_not_end_the_others() -> None:
    gate = anyio.Event()
    source = StreamingSource([Search("bad", broken), Search("slow", after(gate, "a"))])
    found: list[ContextDelta] = []
    gate.set()
    stream = source.stream("How?")
    found.append(await anext(stream))
    with pytest.raises(RetrievalError, match=r"bad failed.*no index") as caught:
        await anext(stream)
    assert [document.source for delta in found for document in delta.documents] == ["a"]
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_reranker_that_fails_is_a_failed_retrieval() -> None:
    def rerank(query: str, found: object) -> list[Document]:
        raise ValueError("no model")

    with pytest.raises(RetrievalError, match=r"reranking failed.*no model"):
        await read(StreamingSource([Search("one", after(None, "a"))], rerank=rerank))


async def test_searches_end_with_their_stream() -> None:
    ended = anyio.Event()

    async def hang(query: str) -> Sequence[Document]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return []

    stream = StreamingSource([Search("fast", after(None, "a")), Search("hangs", hang)]).stream("How?")
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert ended.is_set()
