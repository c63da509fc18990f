"""From events to a picture's parts: lanes of spans and curves on one time axis. Pure; knows neither pixels nor colours.

A renderer says how many columns its time axis has (pixels or characters). What it could not show apart is merged here, so that
the size of a picture is bounded by its width, however many events there are. RETRIEVAL_END has no mark of its own: the final
context follows it at once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline.events import Event, EventKind, Timeline

RETRIEVAL_INSTANTS = (EventKind.SKIP, EventKind.DELTA, EventKind.DEADLINE, EventKind.RETRIEVAL_FAILED)
ENGINE_INSTANTS = (EventKind.EVICTED, EventKind.INVALIDATED, EventKind.RESUMED, EventKind.ABORTED)

_MIN_AXIS_S = 1e-3


@dataclass(frozen=True, slots=True)
class Detail:
    """How fine a picture can be: columns along its axis, columns that an instant's mark takes, lanes of pages, ticks."""

    num_columns: int
    mark_columns: int
    max_lanes: int
    max_ticks: int


@dataclass(frozen=True, slots=True)
class Span:
    """``num_events`` events of one kind, drawn as one; ``tokens`` is their sum, label and detail are the first one's."""

    kind: EventKind
    start_s: float
    end_s: float
    label: str = ""
    tokens: int | None = None
    detail: str | None = None
    num_events: int = 1


@dataclass(frozen=True, slots=True)
class Lane:
    """Spans of one kind that do not overlap, in order."""

    kind: EventKind
    spans: tuple[Span, ...]


class Point(NamedTuple):
    """A corner of a curve: ``tokens`` at ``at_s``; straight lines between corners."""

    at_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Axis:
    """Time from 0 to ``end_s``, which no event passes; ``ticks_s`` are round."""

    end_s: float
    ticks_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One timeline.

    ``fetches`` has a lane per page, in the order of their start, or is ``packed``, where pages are too many for that.
    ``steps`` is the prefill, ``decode`` the answer. ``handed_over`` is the size of the context, ``computed`` how much of it
    is in the KV cache.
    """

    timeline: Timeline
    fetches: tuple[Lane, ...]
    packed: bool
    retrieval_instants: tuple[Lane, ...]
    steps: Lane
    decode: Span | None
    engine_instants: tuple[Lane, ...]
    handed_over: tuple[Point, ...]
    computed: tuple[Point, ...]
    final_context_s: float | None
    first_token_s: float | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Panels under each other on the same ``axis``, with curves up to ``max_tokens``."""

    axis: Axis
    max_tokens: int
    panels: tuple[Panel, ...]


def lay_out(timelines: Sequence[Timeline], detail: Detail) -> Layout:
    """Place all ``timelines`` on one axis. Raises :class:`InvalidInputError` where there is none."""
    if not timelines:
        raise InvalidInputError("There is no timeline to draw. Write at least one.")
    axis = _axis(max(timeline.duration_s for timeline in timelines), detail.max_ticks)
    panels = tuple(_panel(timeline, axis.end_s / detail.num_columns, detail) for timeline in timelines)
    corners = (point.tokens for panel in panels for point in (*panel.handed_over, *panel.computed))
    return Layout(axis, max(1, *corners), panels)


def _axis(duration_s: float, max_ticks: int) -> Axis:
    end_s = max(duration_s, _MIN_AXIS_S)
    power = 10.0 ** math.floor(math.log10(end_s / max_ticks))
    step_s = next(step for factor in (1, 2, 5, 10, 20) if end_s / (step := factor * power) <= max_ticks)
    return Axis(end_s, tuple(tick for index in range(max_ticks + 1) if (tick := index * step_s) <= end_s))


def _panel(timeline: Timeline, column_s: float, detail: Detail) -> Panel:
    of_kind = {kind: [_span(event) for event in timeline.events if event.kind is kind] for kind in EventKind}
    fetches = of_kind[EventKind.FETCH]
    packed = len(fetches) > detail.max_lanes
    rows = pack(fetches, detail.max_lanes, column_s) if packed else [(span,) for span in fetches]

    def instants(kinds: Iterable[EventKind]) -> tuple[Lane, ...]:
        return tuple(Lane(kind, merge(of_kind[kind], detail.mark_columns * column_s)) for kind in kinds if of_kind[kind])

    final, token = timeline.first(EventKind.FINAL_CONTEXT), timeline.first(EventKind.FIRST_TOKEN)
    return Panel(
        timeline=timeline,
        fetches=tuple(Lane(EventKind.FETCH, row) for row in rows),
        packed=packed,
        retrieval_instants=instants(RETRIEVAL_INSTANTS),
        steps=Lane(EventKind.COMPUTED, merge(of_kind[EventKind.COMPUTED], 2 * column_s)),
        decode=_decode(timeline),
        engine_instants=instants(ENGINE_INSTANTS),
        handed_over=thin(_handed_over(timeline), column_s),
        computed=thin(_computed(timeline), column_s),
        final_context_s=final.start_s if final else None,
        first_token_s=token.start_s if token else None,
    )


def _span(event: Event) -> Span:
    return Span(event.kind, event.start_s, event.end_s, event.label, event.tokens, event.detail)


def _decode(timeline: Timeline) -> Span | None:
    token = timeline.first(EventKind.FIRST_TOKEN)
    end = timeline.first(EventKind.DONE, EventKind.ABORTED)
    if token is None:
        return None
    end_s = max(token.start_s, end.end_s if end else timeline.duration_s)
    return Span(end.kind if end else EventKind.DONE, token.start_s, end_s, tokens=end.tokens if end else None)


def merge(spans: Iterable[Span], min_s: float) -> tuple[Span, ...]:
    """Join overlapping spans, and one shorter than ``min_s`` with the next where the gap between them is shorter too."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        last = merged[-1] if merged else None
        if last and (span.start_s < last.end_s or max(last.end_s - last.start_s, span.start_s - last.end_s) < min_s):
            merged[-1] = _join(last, span)
        else:
            merged.append(span)
    return tuple(merged)


def _join(one: Span, other: Span) -> Span:
    known = [span.tokens for span in (one, other) if span.tokens is not None]
    return Span(
        one.kind,
        one.start_s,
        max(one.end_s, other.end_s),
        one.label,
        sum(known) if known else None,
        one.detail,
        one.num_events + other.num_events,
    )


def pack(spans: Iterable[Span], max_lanes: int, min_s: float) -> list[tuple[Span, ...]]:
    """Put each span into the first lane that is free; those that find none of ``max_lanes - 1`` are merged in one more."""
    lanes: list[list[Span]] = []
    overflow: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        lane = next((lane for lane in lanes if lane[-1].end_s <= span.start_s), None)
        if lane is not None:
            lane.append(span)
        elif len(lanes) < max_lanes - 1:
            lanes.append([span])
        else:
            overflow.append(span)
    return [merge(lane, min_s) for lane in (*lanes, overflow) if lane]


def _handed_over(timeline: Timeline) -> list[Point]:
    points = [Point(0.0, 0)]
    for event in sorted(timeline.events, key=lambda event: event.end_s):
        if event.kind in (EventKind.DELTA, EventKind.FINAL_CONTEXT) and event.tokens:
            level = points[-1].tokens
            points += [Point(event.end_s, level), Point(event.end_s, max(0, level + event.tokens))]
    return [*points, Point(timeline.duration_s, points[-1].tokens)]


def _computed(timeline: Timeline) -> list[Point]:
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
