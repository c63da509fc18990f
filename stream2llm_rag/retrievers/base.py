"""What a retriever is, a stand-in for one, and an adapter for those that answer all at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import anyio

from stream2llm_rag.documents import Append, ContextDelta, Document
from stream2llm_rag.errors import InvalidInputError, RetrievalError


@runtime_checkable
class StreamingRetriever(Protocol):
    """Finds context for a question, piece by piece.

    The iterator's end is the end of retrieval. Whoever iterates calls ``aclose()`` on it, where it has one, as soon as no more
    is wanted: an implementation then lets go of its sockets and workers before ``aclose`` returns. A failure is raised as
    :class:`~stream2llm_rag.errors.RetrievalError`.
    """

    def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """Start retrieval for ``query``. Many streams of one retriever may run at once."""
        ...


def require_question(query: str) -> str:
    """``query`` itself, or InvalidInputError where it asks nothing."""
    if not isinstance(query, str) or not query.strip():
        raise InvalidInputError(f"A question is text that is not empty, but {query!r} came.")
    return query


@dataclass(frozen=True, slots=True)
class TimedDelta:
    """A delta and when it comes, in seconds after the start of its stream."""

    at_s: float
    delta: ContextDelta


class InMemoryRetriever:
    """Replays the same deltas at the same times for every question: a recording, or a stand-in in tests.

    After them it raises ``failure``, if one is given. A reader that is late gets at once what was due meanwhile. ``clock`` and
    ``sleep`` can be replaced by those of a test.
    """

    def __init__(
        self,
        deltas: Sequence[TimedDelta],
        *,
        failure: RetrievalError | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        times_s = [timed.at_s for timed in deltas]
        if times_s != sorted(times_s) or any(at_s < 0 for at_s in times_s):
            raise InvalidInputError(f"Deltas come in the order of their times, from 0 on, but {times_s} came.")
        self._deltas = tuple(deltas)
        self._failure = failure
        self._clock = clock
        self._sleep = sleep

    @classmethod
    def from_documents(cls, documents: Sequence[Document], *, gap_s: float = 0.0) -> InMemoryRetriever:
        """One Append for each document, ``gap_s`` seconds apart."""
        last = len(documents) - 1
        return cls([TimedDelta(i * gap_s, Append((document,), last - i)) for i, document in enumerate(documents)])

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas, each at its time."""
        require_question(query)
        started_s = self._clock()
        for timed in self._deltas:
            if (wait_s := started_s + timed.at_s - self._clock()) > 0:
                await self._sleep(wait_s)
            yield timed.delta
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # else each stream would leave its frames, and their context, on it


class FunctionRetriever:
    """Makes a StreamingRetriever of an async function that returns all its documents at once."""

    def __init__(self, function: Callable[[str], Awaitable[Sequence[Document]]]) -> None:
        self._function = function

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """One Append with all documents. RetrievalError where the function raises."""
        require_question(query)
        try:
            documents = tuple(await self._function(query))
        except Exception as error:
            raise RetrievalError(f"The retrieval function failed: {error!r}") from error
        yield Append(documents, num_remaining=0)
