from __future__ import annotations

import pytest

from stream2llm_rag.documents import Append, ContextDelta, Document, Replace
from stream2llm_rag.errors import InvalidInputError, RetrievalError
from stream2llm_rag.retrievers import FunctionRetriever, InMemoryRetriever, StreamingRetriever, TimedDelta

A, B = Document("alpha", "a"), Document("beta", "b")


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.naps_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.naps_s.append(seconds)
        self.now_s += seconds


async def collect(retriever: StreamingRetriever) -> list[ContextDelta]:
    return [delta async for delta in retriever.stream("why?")]


async def test_deltas_are_replayed_unchanged_at_their_times():
    time = FakeTime()
    timed = [TimedDelta(0.0, Append((A,))), TimedDelta(0.5, Append((B,))), TimedDelta(2.0, Replace((B, A)))]
    retriever = InMemoryRetriever(timed, clock=time.clock, sleep=time.sleep)
    assert await collect(retriever) == [each.delta for each in timed]
    assert time.naps_s == [0.5, 1.5]


async def test_a_late_reader_does_not_push_later_deltas_back():
    time = FakeTime()
    retriever = InMemoryRetriever(
        [TimedDelta(1.0, Append((A,))), TimedDelta(2.0, Append((B,))), TimedDelta(3.0, Append(()))],
        clock=time.clock,
        sleep=time.sleep,
    )
    async for _ in retriever.stream("why?"):
        time.now_s += 1.5
    assert time.naps_s == [1.0]


async def test_a_failure_that_comes_again_and_again_keeps_nothing_of_the_streams_before():
    retriever = InMemoryRetriever([], failure=RetrievalError("the index is gone"))
    lengths = set()
    for _ in range(3):
        with pytest.raises(RetrievalError) as caught:
            await collect(retriever)
        lengths.add(len(caught.traceback))
    assert len(lengths) == 1


async def test_a_failure_comes_after_the_deltas():
    failure = RetrievalError("the index is gone", [A])
    stream = InMemoryRetriever([TimedDelta(0.0, Append((A,)))], failure=failure).stream("why?")
    assert (await anext(stream)).documents == (A,)
    with pytest.raises(RetrievalError, match="the index is gone"):
        await anext(stream)


async def test_documents_become_one_append_each_and_count_down():
    deltas = await collect(InMemoryRetriever.from_documents([A, B]))
    assert deltas == [Append((A,), num_remaining=1), Append((B,), num_remaining=0)]


@pytest.mark.parametrize("times_s", [[1.0, 0.5], [-1.0]])
def test_times_out_of_order_are_refused(times_s):
    with pytest.raises(InvalidInputError, match="order of their times"):
        InMemoryRetriever([TimedDelta(at_s, Append(())) for at_s in times_s])


async def test_a_function_becomes_a_retriever_of_one_delta():
    async def find(query: str) -> list[Document]:
        return [Document(query, "echo")]

    assert await collect(FunctionRetriever(find)) == [Append((Document("why?", "echo"),), num_remaining=0)]


async def test_a_function_that_raises_is_a_retrieval_error():
    async def find(query: str) -> list[Document]:
        raise KeyError("shard 3")

    with pytest.raises(RetrievalError, match="shard 3") as caught:
        await collect(FunctionRetriever(find))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("question", ["", "  \n", None])
async def test_an_empty_question_is_refused(question):
    with pytest.raises(InvalidInputError, match="question"):
        await anext(InMemoryRetriever.from_documents([A]).stream(question))


def test_both_are_streaming_retrievers():
    assert isinstance(InMemoryRetriever([]), StreamingRetriever)
    assert isinstance(FunctionRetriever(lambda query: None), StreamingRetriever)
