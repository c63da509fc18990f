from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Event, EventKind, Timeline
from stream2llm_rag.timeline.curves import Point, level_at, thin
from stream2llm_rag.timeline.lanes import Lane, Span, merge, pack
from stream2llm_rag.timeline.layout import Detail, Layout, Panel, lay_out
from tests.timeline.samples import crawl, timelines, times

FINE = Detail(num_columns=1000, mark_columns=8, max_lanes=12, max_ticks=10)
details = st.builds(Detail, st.integers(10, 1000), st.integers(1, 8), st.integers(2, 6), st.integers(3, 12))


def lanes_of(panel: Panel) -> list[Lane]:
    return [*panel.fetches, *panel.retrieval_instants, panel.steps, *panel.engine_instants]


@given(st.lists(timelines, min_size=1, max_size=3), details)
def test_every_span_lies_on_the_axis_and_overlaps_no_other_in_its_lane(several: list[Timeline], detail: Detail) -> None:
    layout = lay_out(several, detail)
    for lane in (lane for panel in layout.panels for lane in lanes_of(panel)):
        assert all(0 <= span.start_s <= span.end_s <= layout.axis.end_s for span in lane.spans)
        assert all(left.end_s <= right.start_s for left, right in pairwise(lane.spans))
        assert all(span.kind is lane.kind for span in lane.spans)


@given(timelines, details)
def test_no_event_and_no_computed_token_is_lost_by_packing_and_merging(timeline: Timeline, detail: Detail) -> None:
    (panel,) = lay_out([timeline], detail).panels
    drawn = dict.fromkeys(EventKind, 0)
    for lane in lanes_of(panel):
        drawn[lane.kind] += sum(span.num_events for span in lane.spans)
    for kind in {lane.kind for lane in lanes_of(panel)} | {EventKind.FETCH, EventKind.SKIP, EventKind.EVICTED}:
        assert drawn[kind] == sum(event.kind is kind for event in timeline.events)
    computed = sum(event.tokens or 0 for event in timeline.events if event.kind is EventKind.COMPUTED)
    assert sum(span.tokens or 0 for span in panel.steps.spans) == computed


@given(st.lists(timelines, min_size=1, max_size=3), details)
def test_curves_go_forward_in_time_and_stay_in_the_chart(several: list[Timeline], detail: Detail) -> None:
    layout = lay_out(several, detail)
    for curve in (curve for panel in layout.panels for curve in (panel.handed_over, panel.computed)):
        assert all(left.at_s <= right.at_s for left, right in pairwise(curve))
        assert all(0 <= point.at_s <= layout.axis.end_s and 0 <= point.tokens <= layout.max_tokens for point in curve)


@given(st.floats(0, 1e9), st.integers(3, 12))
def test_ticks_are_few_evenly_spaced_and_on_the_axis(duration_s: float, max_ticks: int) -> None:
    timeline = Timeline("Why?", "streaming", (Event(EventKind.DONE, duration_s, duration_s),))
    axis = lay_out([timeline], Detail(100, 1, 2, max_ticks)).axis
    assert axis.ticks_s[0] == 0
    assert 2 <= len(axis.ticks_s) <= max_ticks + 1
    assert axis.ticks_s[-1] <= axis.end_s
    steps = [right - left for left, right in pairwise(axis.ticks_s)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_both_runs_share_one_axis_that_the_longer_one_sets() -> None:
    layout = lay_out([crawl("streaming"), crawl("non_streaming")], FINE)
    assert layout.axis.end_s == 8.25
    assert [panel.first_token_s for panel in layout.panels] == [6.25, 7.25]
    assert [panel.final_context_s for panel in layout.panels] == [6.125, 6.125]


def test_streamed_prefill_overlaps_retrieval_and_the_usual_one_does_not() -> None:
    streaming, usual = lay_out([crawl("streaming"), crawl("non_streaming")], FINE).panels
    assert level_at(streaming.computed, 6.0) > 0.9 * level_at(streaming.handed_over, 6.0)
    assert level_at(usual.computed, 6.0) == 0
    assert level_at(usual.handed_over, 6.0) == 9000


def test_few_pages_have_a_lane_each_and_many_are_packed_into_as_few_as_overlap() -> None:
    few, many = lay_out([crawl("streaming", num_pages=12), crawl("streaming", num_pages=200)], FINE).panels
    assert (few.packed, len(few.fetches)) == (False, 12)
    assert (many.packed, len(many.fetches)) == (True, 1)


@given(st.lists(st.tuples(times, times), max_size=60), st.integers(2, 5))
def test_packing_never_takes_more_lanes_than_it_may(ends: list[tuple[float, float]], max_lanes: int) -> None:
    lanes = pack([Span(EventKind.FETCH, min(pair), max(pair)) for pair in ends], max_lanes, 0.0)
    assert len(lanes) <= max_lanes
    assert sum(span.num_events for lane in lanes for span in lane) == len(ends)


def test_pages_beyond_the_last_lane_are_merged_into_it() -> None:
    lanes = pack([Span(EventKind.FETCH, 0.0, 1.0) for _ in range(10)], 3, 0.0)
    assert [[span.num_events for span in lane] for lane in lanes] == [[1], [1], [8]]


def test_thousands_of_steps_become_no_more_spans_than_the_axis_can_show() -> None:
    (panel,) = lay_out([crawl("streaming", num_steps=2000)], Detail(500, 1, 12, 10)).panels
    assert 50 < len(panel.steps.spans) <= 500
    assert len(panel.computed) <= 4 * 500


def test_steps_that_can_be_told_apart_stay_apart() -> None:
    (panel,) = lay_out([crawl("streaming", num_steps=9)], FINE).panels
    assert [span.num_events for span in panel.steps.spans] == [1] * 9


def test_merging_joins_the_narrow_and_the_overlapping_and_nothing_else() -> None:
    spans = [
        Span(EventKind.COMPUTED, start, end, tokens=10)
        for start, end in ((0, 0.1), (0.15, 0.2), (1, 3), (2, 4), (4, 5), (9, 9))
    ]
    joined = merge(spans, 0.5)
    assert [(span.start_s, span.end_s, span.num_events, span.tokens) for span in joined] == [
        (0, 0.2, 2, 20),
        (1, 4, 2, 20),
        (4, 5, 1, 10),
        (9, 9, 1, 10),
    ]


def test_a_step_that_begins_a_trifle_early_is_cut_and_not_joined() -> None:
    spans = [Span(EventKind.COMPUTED, start, end) for start, end in ((0, 2), (1.75, 3), (2.75, 2.875), (4, 5))]
    assert [(span.start_s, span.end_s) for span in merge(spans, 0.5)] == [(0, 2), (2, 3), (3, 3), (4, 5)]


def test_merged_tokens_are_unknown_only_where_none_is_known() -> None:
    known, unknown = Span(EventKind.EVICTED, 1, 1, tokens=5), Span(EventKind.EVICTED, 1, 1)
    assert merge([known, unknown], 1)[0].tokens == 5
    assert merge([unknown, unknown], 1)[0].tokens is None


def cache_after(*events: Event) -> list[Point]:
    timeline = Timeline("Why?", "streaming", (Event(EventKind.COMPUTED, 0, 1, tokens=100), *events))
    (panel,) = lay_out([timeline], FINE).panels
    return list(panel.computed)


@pytest.mark.parametrize(
    ("kind", "tokens", "left"),
    [
        (EventKind.EVICTED, 30, 70),
        (EventKind.EVICTED, None, 0),
        (EventKind.EVICTED, 500, 0),
        (EventKind.INVALIDATED, 30, 70),
        (EventKind.INVALIDATED, None, 100),
        (EventKind.RESUMED, 30, 130),
        (EventKind.RESUMED, None, 100),
        (EventKind.COMPUTED, 30, 130),
        (EventKind.DELTA, 30, 100),
    ],
)
def test_the_cache_grows_and_shrinks_with_what_happens_to_it(kind: EventKind, tokens: int | None, left: int) -> None:
    assert level_at(cache_after(Event(kind, 2, 3, tokens=tokens)), 4) == left


def test_the_cache_fills_during_a_step_and_keeps_its_level_between_two() -> None:
    curve = cache_after(Event(EventKind.COMPUTED, 2, 3, tokens=100))
    assert [level_at(curve, at_s) for at_s in (0, 0.5, 1, 1.5, 2, 2.5, 3)] == [0, 50, 100, 100, 100, 150, 200]


def test_a_replacement_can_shrink_the_context() -> None:
    deltas = (Event(EventKind.DELTA, 1, 1, tokens=100), Event(EventKind.DELTA, 2, 2, tokens=-40), Event(EventKind.DONE, 3, 3))
    (panel,) = lay_out([Timeline("Why?", "streaming", deltas)], FINE).panels
    assert [level_at(panel.handed_over, at_s) for at_s in (0.5, 1.5, 2.5)] == [0, 100, 60]


@given(st.lists(st.tuples(times, st.integers(0, 100)), min_size=1), st.floats(0.01, 30))
def test_thinning_keeps_the_ends_and_the_extremes(corners: list[tuple[float, int]], column_s: float) -> None:
    points = [Point(*corner) for corner in sorted(corners)]
    kept = thin(points, column_s)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(p.tokens for p in points), max(p.tokens for p in points)} <= {p.tokens for p in kept}
    assert set(kept) <= set(points)


def test_the_answer_lasts_from_the_first_token_to_its_end() -> None:
    token = Event(EventKind.FIRST_TOKEN, 1, 1)
    ends = {
        EventKind.DONE: Event(EventKind.DONE, 3, 3, tokens=64),
        EventKind.ABORTED: Event(EventKind.ABORTED, 2, 2),
    }
    for kind, end in ends.items():
        (panel,) = lay_out([Timeline("Why?", "streaming", (token, end))], FINE).panels
        assert panel.decode == Span(kind, 1, end.end_s, tokens=end.tokens)
    (panel,) = lay_out([Timeline("Why?", "streaming", (ends[EventKind.DONE],))], FINE).panels
    assert panel.decode is None


def test_an_answer_never_ends_before_it_begins() -> None:
    events = (Event(EventKind.ABORTED, 1, 1), Event(EventKind.FIRST_TOKEN, 2, 2))
    (panel,) = lay_out([Timeline("Why?", "streaming", events)], FINE).panels
    assert panel.decode == Span(EventKind.ABORTED, 2, 2)


def test_an_answer_that_still_runs_lasts_to_the_end_of_what_is_known() -> None:
    events = (Event(EventKind.FIRST_TOKEN, 1, 1), Event(EventKind.COMPUTED, 2, 4))
    (panel,) = lay_out([Timeline("Why?", "streaming", events)], FINE).panels
    assert panel.decode == Span(EventKind.DONE, 1, 4)


def test_a_timeline_without_events_has_an_axis_all_the_same() -> None:
    layout: Layout = lay_out([Timeline("Why?", "streaming")], FINE)
    assert layout.axis.end_s > 0
    assert layout.max_tokens == 1


def test_no_timeline_at_all_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no timeline"):
        lay_out([], FINE)
