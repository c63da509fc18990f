"""Spans of time, and how many of them share a lane without overlapping. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from stream2llm_rag.timeline.events import EventKind


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


def merge(spans: Iterable[Span], min_s: float) -> tuple[Span, ...]:
    """Make spans fit one lane in which ``min_s`` is the shortest time that can be seen.

    One that is shorter is joined with the next where the gap is shorter too. Of two that overlap, the later is cut by up to
    ``min_s``, as steps that follow each other may overlap by a rounding; by more, they are joined.
    """
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start_s):
        last = merged[-1] if merged else None
        gap_s = span.start_s - last.end_s if last else 0.0
        if last and (gap_s < -min_s or max(gap_s, last.end_s - last.start_s) < min_s):
            merged[-1] = _join(last, span)
        elif last and gap_s < 0:
            merged.append(replace(span, start_s=last.end_s, end_s=max(span.end_s, last.end_s)))
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
