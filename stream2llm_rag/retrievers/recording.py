"""Record what a retriever brings and when, and play it back: the same context at the same pace, as often as need be."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import anyio

from stream2llm_rag.documents import Append, ContextDelta, RetrievalEvent
from stream2llm_rag.errors import RetrievalError
from stream2llm_rag.retrievers.base import InMemoryRetriever, StreamingRetriever, TimedDelta


@dataclass(frozen=True, slots=True)
class Recording:
    """One stream of a retriever, from its start to its end, or to where its reader left.

    ``started_s`` is a time of the recorder's clock; the times of ``deltas`` and ``ended_s`` count seconds from it. ``failure``
    is what the retriever raised, if it did.
    """

    query: str
    started_s: float
    ended_s: float
    deltas: tuple[TimedDelta, ...]
    failure: RetrievalError | None = None


class RecordingRetriever:
    """Passes on what ``retriever`` finds, unchanged and unhurried, and keeps a :class:`Recording` of each stream.

    ``recordings`` has one for each stream that has ended, in the order of their ends. They hold every document that was found:
    as much memory as the retriever's own limits allow a stream, for as long as this object lives.
    """

    def __init__(self, retriever: StreamingRetriever, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.recordings: list[Recording] = []
        self._retriever = retriever
        self._clock = clock

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas of the retriever, each as soon as it comes. Raises what the retriever raises."""
        started_s = self._clock()
        deltas: list[TimedDelta] = []
        failure: RetrievalError | None = None
        found = self._retriever.stream(query)
        try:
            async for delta in found:
                deltas.append(TimedDelta(self._clock() - started_s, delta))
                yield delta
        except RetrievalError as error:
            failure = error
            raise
        finally:
            self.recordings.append(Recording(query, started_s, self._clock() - started_s, tuple(deltas), failure))
            if aclose := getattr(found, "aclose", None):
                with anyio.CancelScope(shield=True):  # else a reader that was cancelled would leave its sockets open
                    await aclose()


class ReplayRetriever:
    """Brings for every question what was recorded, at the pace at which it came, and then ends or fails as the original did.

    The times of its events are those of the replay. ``clock`` and ``sleep`` can be replaced by those of a test.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._recording = recording
        self._clock = clock
        self._sleep = sleep

    def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The recorded deltas, each at its time."""
        deltas = list(self._moved_by(self._clock() - self._recording.started_s))
        return InMemoryRetriever(deltas, failure=self._recording.failure, clock=self._clock, sleep=self._sleep).stream(query)

    def _moved_by(self, shift_s: float) -> Iterator[TimedDelta]:
        for timed in self._recording.deltas:
            events = tuple(_moved(event, shift_s) for event in timed.delta.events)
            yield replace(timed, delta=replace(timed.delta, events=events))
        yield TimedDelta(self._recording.ended_s, Append(()))  # the original did not end with its last delta


def _moved(event: RetrievalEvent, shift_s: float) -> RetrievalEvent:
    steps = tuple(_moved(step, shift_s) for step in event.steps)
    return replace(event, started_s=event.started_s + shift_s, ended_s=event.ended_s + shift_s, steps=steps)
