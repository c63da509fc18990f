"""From events to a picture's parts: lanes of spans and curves on one time axis. Pure; knows neither pixels nor colours.

A renderer says how many columns its time axis has (pixels or characters). What it could not show apart is merged here, so that
the size of a picture is bounded by its width, however many events there are. RETRIEVAL_END has no mark of its own: the final
context follows it at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline.curves import Point, computed, handed_over, thin
from stream2llm_rag.timeline.events import Event, EventKind, Timeline
from stream2llm_rag.timeline.lanes import Lane, Span, merge, pack

RETRIEVAL_INSTANTS = (EventKind.RETRIEVAL_STEP, EventKind.SKIP, EventKind.DELTA, EventKind.DEADLINE, EventKind.RETRIEVAL_FAILED)
ENGINE_INSTANTS = (EventKind.EVICTED, EventKind.INVALIDATED, EventKind.RESUMED, EventKind.ABORTED)

_MIN_AXIS_S = 1e-3


@dataclass(frozen=True, slots=True)
class Detail:
    """How fine a picture can be.

    The columns of its axis, those that the mark of an instant takes, the lanes of pages, and the ticks (3 or more).
    """

    num_columns: int
    mark_columns: int
    max_lanes: int
    max_ticks: int


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
        handed_over=thin(handed_over(timeline), column_s),
        computed=thin(computed(timeline), column_s),
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
