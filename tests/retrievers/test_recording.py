from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.documents import Append, ContextDelta, Document, RetrievalEvent
from stream2llm_rag.errors import RetrievalError
from stream2llm_rag.retrievers.base import InMemoryRetriever, TimedDelta
from stream2llm_rag.retrievers.recording import Recording, RecordingRetriever, ReplayRetriever


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


def page(number: int, fetched_at: float = 0.0) -> Append:
    source = f"https://docs.example/{number}"
    step = RetrievalEvent("download", source, fetched_at, fetched_at + 0.125)
    event = RetrievalEvent("fetch", source, fetched_at, fetched_at + 0.25, title=f"Page {number}", steps=(step,))
    return Append((Document(f"text {number}", source),), events=(event,))


class Scripted:
    """Brings ``deltas`` with a pause before each and one at the end, then fails if told to."""

    def __init__(self, clock: Clock, gaps_s: list[float], failure: RetrievalError | None = None) -> None:
        self._clock = clock
        self._gaps_s = gaps_s
        self._failure = failure

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        for number, gap_s in enumerate(self._gaps_s[:-1]):
            await self._clock.sleep(gap_s)
            yield page(number, self._clock() - 0.25)
        await self._clock.sleep(self._gaps_s[-1])
        if self._failure is not None:
            raise self._failure


async def record(retriever: Scripted | InMemoryRetriever, clock: Clock) -> tuple[list[ContextDelta], Recording]:
    recorder = RecordingRetriever(retriever, clock=clock)
    deltas = [delta async for delta in recorder.stream("How?")]
    [recording] = recorder.recordings
    return deltas, recording


# Binary fractions, so that sums and differences are exact.
gaps = st.lists(st.integers(0, 4096).map(lambda ticks: ticks / 1024), min_size=1, max_size=8)


@given(gaps_s=gaps, start_s=st.integers(0, 1000), replay_s=st.integers(0, 1000))
async def test_a_replay_brings_the_same_at_the_same_moments(gaps_s: list[float], start_s: int, replay_s: int) -> None:
    clock = Clock(start_s)
    original, recording = await record(Scripted(clock, gaps_s), clock)
    later = Clock(replay_s)
    times_s, replayed = [], []
    async for delta in ReplayRetriever(recording, clock=later, sleep=later.sleep).stream("How?"):
        times_s.append(later() - replay_s)
        replayed.append(delta)
    arrivals_s = [sum(gaps_s[: index + 1]) for index in range(len(gaps_s))]
    assert times_s == arrivals_s
    assert [delta.documents for delta in replayed] == [*(delta.documents for delta in original), ()]
    assert later() - replay_s == clock() - start_s


async def test_what_is_recorded_passes_unchanged() -> None:
    clock = Clock()
    deltas, recording = await record(InMemoryRetriever([TimedDelta(0.0, page(1)), TimedDelta(0.0, page(2))]), clock)
    assert deltas == [page(1), page(2)]
    assert [timed.delta for timed in recording.deltas] == deltas
    assert recording.query == "How?"


async def test_events_of_a_replay_have_the_times_of_the_replay() -> None:
    clock = Clock(100.0)
    original, recording = await record(Scripted(clock, [1.0, 0.0]), clock)
    assert original[0].events[0].started_s == 100.75
    later = Clock(500.0)
    [replayed, _] = [delta async for delta in ReplayRetriever(recording, clock=later, sleep=later.sleep).stream("How?")]
    [event] = replayed.events
    assert (event.started_s, event.ended_s, event.title) == (500.75, 501.0, "Page 0")
    assert [(step.started_s, step.ended_s) for step in event.steps] == [(500.75, 500.875)]


async def test_a_failure_is_recorded_and_happens_again() -> None:
    clock = Clock()
    recorder = RecordingRetriever(Scripted(clock, [1.0, 2.0], RetrievalError("gone")), clock=clock)
    with pytest.raises(RetrievalError, match="gone"):
        _ = [delta async for delta in recorder.stream("How?")]
    [recording] = recorder.recordings
    later = Clock()
    replay = ReplayRetriever(recording, clock=later, sleep=later.sleep).stream("How?")
    assert [len((await anext(replay)).documents) for _ in range(2)] == [1, 0]
    with pytest.raises(RetrievalError, match="gone"):
        await anext(replay)
    assert later() == 3.0


async def test_each_stream_has_a_recording_of_its_own() -> None:
    recorder = RecordingRetriever(InMemoryRetriever([TimedDelta(0.0, page(1))]))
    for query in ("first", "second"):
        _ = [delta async for delta in recorder.stream(query)]
    assert [recording.query for recording in recorder.recordings] == ["first", "second"]


class Open:
    """A stream that never ends by itself; closing it takes a moment."""

    def __init__(self) -> None:
        self.was_closed = False

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        try:
            yield page(1)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.was_closed = True


async def test_a_reader_that_leaves_closes_the_retriever_and_keeps_what_came() -> None:
    retriever = Open()
    recorder = RecordingRetriever(retriever)
    stream = recorder.stream("How?")
    await anext(stream)
    await stream.aclose()
    assert retriever.was_closed
    assert [timed.delta for timed in recorder.recordings[0].deltas] == [page(1)]


class Closing:
    """An iterator that is no generator: it must be told to let go, and that takes a moment."""

    def __init__(self) -> None:
        self.was_closed = False

    def stream(self, query: str) -> Closing:
        return self

    def __aiter__(self) -> Closing:
        return self

    async def __anext__(self) -> ContextDelta:
        await anyio.sleep_forever()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.was_closed = True


async def test_a_reader_that_is_cancelled_closes_the_retriever_to_the_end() -> None:
    retriever = Closing()
    with anyio.move_on_after(0):
        async for _ in RecordingRetriever(retriever).stream("How?"):
            pass
    assert retriever.was_closed
