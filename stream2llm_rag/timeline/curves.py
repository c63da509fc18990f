"""How the context and the part of it that is computed grow over time. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from stream2llm_rag.timeline.events import Event, EventKind, Timeline


class Point(NamedTuple):
    """A corner of a curve: ``tokens`` at ``at_s``; straight lines between corners."""

    at_s: float
    tokens: int


def handed_over(timeline: Timeline) -> list[Point]:
    """The size of the context that the engine was given."""
    points = [Point(0.0, 0)]
    for event in sorted(timeline.events, key=lambda event: event.end_s):
        if event.kind in (EventKind.DELTA, EventKind.FINAL_CONTEXT) and event.tokens:
            level = points[-1].tokens
            points += [Point(event.end_s, level), Point(event.end_s, max(0, level + event.tokens))]
    return [*points, Point(timeline.duration_s, points[-1].tokens)]


def computed(timeline: Timeline) -> list[Point]:
    """How much of the context is in the KV cache: rising during a step, and falling at once with what is lost."""
    points = [Point(0.0, 0)]
    for event in sorted(timeline.events, key=lambda event: event.end_s):
        at_s, level = points[-1]
        change = _kv_change(event, level)
        if change:
            points += [Point(max(at_s, event.start_s), level), Point(event.end_s, max(0, level + change))]
    return [*points, Point(timeline.duration_s, points[-1].tokens)]


def _kv_change(event: Event, level: int) -> int:
    """By how many tokens the KV cache of the request grew; ``level`` is how many it held."""
    if event.kind in (EventKind.COMPUTED, EventKind.RESUMED):
        return event.tokens or 0
    if event.kind is EventKind.EVICTED and event.tokens is None:
        return -level
    return -(event.tokens or 0) if event.kind in (EventKind.EVICTED, EventKind.INVALIDATED) else 0


def thin(points: Sequence[Point], column_s: float) -> tuple[Point, ...]:
    """Of the corners within each column of time, the first, the lowest, the highest and the last."""
    kept: list[Point] = []
    for _, group in groupby(points, key=lambda point: int(point.at_s / column_s)):
        corners = list(group)
        levels = [point.tokens for point in corners]
        ends = (0, levels.index(min(levels)), levels.index(max(levels)), len(corners) - 1)
        kept += [corners[index] for index in sorted(set(ends))]
    return tuple(kept)


def level_at(points: Sequence[Point], at_s: float) -> float:
    """The height of a curve at a time, in tokens."""
    index = bisect_right(points, at_s, key=lambda point: point.at_s)
    if index == len(points):
        return points[-1].tokens
    left, right = points[max(0, index - 1)], points[index]
    share = (at_s - left.at_s) / (right.at_s - left.at_s) if right.at_s > left.at_s else 1.0
    return left.tokens + share * (right.tokens - left.tokens)
