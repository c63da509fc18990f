"""Traces from what the library recorded: replay your own load. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.distributions import arrivals
from stream2llm_rag.simulation.trace import Chunk, Query, Trace
from stream2llm_rag.timeline import Event, EventKind, Timeline


def trace_from_timelines(timelines: Sequence[Timeline], *, qps: float | None = None, seed: int = 0) -> Trace:
    """The questions of ``timelines``, with what retrieval brought to each and when.

    They come when they were asked, the first one at 0; or, in the given order, as a Poisson process of ``qps`` a second.
    Runs of the usual way (``non_streaming``) are left out: their timelines have no moments at which tokens came. Raises
    :class:`InvalidInputError` where nothing is left, and for a timeline that ended before its context was complete.
    """
    streamed = [timeline for timeline in timelines if timeline.mode == "streaming"]
    if not streamed:
        raise InvalidInputError(f"none of {len(timelines)} timelines is of a streaming run. Record some without --no-stream.")
    times = _times_asked(streamed) if qps is None else _poisson(qps, seed)
    named = sorted(zip(times, range(len(streamed)), streamed, strict=False), key=lambda item: item[0])
    return tuple(_query(f"question-{number}", arrival_s, timeline) for arrival_s, number, timeline in named)


def _times_asked(timelines: Sequence[Timeline]) -> list[float]:
    asked_at = [timeline.asked_at for timeline in timelines if timeline.asked_at is not None]
    if len(asked_at) < len(timelines):
        raise InvalidInputError(
            f"{len(timelines) - len(asked_at)} timelines do not say when they were asked. Give a rate, qps."
        )
    return [at - min(asked_at) for at in asked_at]


def _poisson(qps: float, seed: int) -> Iterator[float]:
    if not 0 < qps < float("inf"):
        raise InvalidInputError(f"qps is {qps!r}. Write a number above zero.")
    return arrivals(Random(f"timelines/{seed}/arrivals"), qps)


def _query(query_id: str, arrival_s: float, timeline: Timeline) -> Query:
    final = timeline.first(EventKind.FINAL_CONTEXT)
    if final is None or final.tokens is None:
        raise InvalidInputError(f"{query_id} ended before its context was complete. Leave its timeline out.")
    deltas = (event for event in timeline.events if event.kind is EventKind.DELTA)
    chunks = list(_chunks(query_id, deltas, final.start_s))
    done = timeline.first(EventKind.DONE)
    # The question goes in with the last piece, as the hand-over that TTFT counts from.
    last = Chunk(final.start_s, final.tokens)
    if chunks and chunks[-1].after_s == final.start_s:
        last = Chunk(final.start_s, chunks[-1].num_tokens + final.tokens, chunks[-1].num_kept)
        chunks.pop()
    return Query(query_id, arrival_s, (*chunks, last), max(1, done.tokens or 1) if done else 1)


def _chunks(query_id: str, deltas: Iterable[Event], final_s: float) -> Iterator[Chunk]:
    """A chunk for each change of the context; what was told to the engine after the end of retrieval had come by then."""
    length = 0
    for event in deltas:
        growth = event.tokens or 0
        if growth < 0 and event.num_kept is None:
            raise InvalidInputError(f"{query_id} has a context that shrank, but its timeline does not say where it was cut.")
        num_kept = length if event.num_kept is None else min(event.num_kept, length)
        num_new = max(0, length + growth - num_kept)
        yield Chunk(min(event.start_s, final_s), num_new, None if event.num_kept is None else num_kept)
        length = num_kept + num_new
