from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Event, EventKind, Timeline, timelines_from_json, timelines_to_json
from tests.timeline.samples import crawl, timelines

FETCH = {"kind": "fetch", "start_s": 0.5, "end_s": 1.0}
VALID = {"version": 1, "question": "Why?", "mode": "streaming", "events": [FETCH], "measures": {"ttft_s": 0.1}}


@given(timelines)
def test_a_timeline_survives_json(timeline: Timeline) -> None:
    text = timeline.to_json()
    assert Timeline.from_json(text) == timeline
    assert text.isascii()


@given(st.lists(timelines, max_size=3))
def test_several_timelines_survive_json(several: list[Timeline]) -> None:
    assert timelines_from_json(timelines_to_json(several)) == tuple(several)


def test_a_single_timeline_reads_as_one_of_several() -> None:
    timeline = crawl("streaming")
    assert timelines_from_json(timeline.to_json()) == (timeline,)


def test_events_stand_in_the_order_of_their_start() -> None:
    late, early = Event(EventKind.DONE, 2.0, 2.0), Event(EventKind.FETCH, 1.0, 3.0)
    timeline = Timeline("Why?", "streaming", (late, early))
    assert timeline.events == (early, late)
    assert timeline.first(EventKind.DONE, EventKind.FETCH) is early
    assert timeline.first(EventKind.ABORTED) is None


def test_duration_reaches_to_the_last_end() -> None:
    assert Timeline("Why?", "streaming", (Event(EventKind.FETCH, 0.0, 3.0), Event(EventKind.DONE, 2.0, 2.0))).duration_s == 3.0
    assert Timeline("Why?", "streaming").duration_s == 0.0


@pytest.mark.parametrize(
    ("start_s", "end_s"),
    [(-1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("nan")), (0.0, float("inf")), (0.0, 2e9)],
)
def test_an_impossible_interval_is_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(InvalidInputError, match="no interval of time"):
        Event(EventKind.FETCH, start_s, end_s)


def test_absurd_token_counts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no number of tokens"):
        Event(EventKind.DELTA, 0.0, 0.0, tokens=-(10**16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_measure_that_is_no_finite_number_is_refused(value: float) -> None:
    with pytest.raises(InvalidInputError, match=r"measures\.ttft_s"):
        Timeline("Why?", "streaming", (), {"ttft_s": value})


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'fast'.*streaming, non_streaming"):
        Timeline("Why?", "fast")


def test_measures_cannot_be_changed_afterwards() -> None:
    figures = {"ttft_s": 0.1}
    timeline = Timeline("Why?", "streaming", (), figures)
    figures["ttft_s"] = 9.0
    assert timeline.measures == {"ttft_s": 0.1}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"version": 2}, "version is 2"),
        ({"version": True}, "version is True"),
        ({"question": 7}, "question is 7"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"events": {}}, "events is {}"),
        ({"events": [FETCH, 3]}, r"events\[1\] is 3"),
        ({"events": [{}]}, r"events\[0\]\.kind is missing"),
        ({"events": [FETCH | {"kind": "dance"}]}, r"events\[0\]\.kind is 'dance'"),
        ({"events": [FETCH | {"start_s": "1"}]}, r"events\[0\]\.start_s is '1'"),
        ({"events": [FETCH | {"end_s": True}]}, r"events\[0\]\.end_s is True"),
        ({"events": [FETCH | {"end_s": 0.25}]}, r"events\[0\]: start_s=0.5 and end_s=0.25"),
        ({"events": [FETCH | {"tokens": 1.5}]}, r"events\[0\]\.tokens is 1.5"),
        ({"events": [FETCH | {"label": None}]}, r"events\[0\]\.label is None"),
        ({"events": [FETCH | {"detail": []}]}, r"events\[0\]\.detail is \[\]"),
        ({"measures": []}, r"measures is \[\]"),
        ({"measures": {"ttft_s": "1"}}, r"measures\.ttft_s is '1'"),
    ],
)
def test_bad_json_is_refused_with_what_and_where(change: dict[str, object], place: str) -> None:
    with pytest.raises(InvalidInputError, match=place):
        Timeline.from_json(json.dumps(VALID | change))


def test_the_place_in_an_array_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"\[1\]\.events\[0\]\.kind is missing"):
        timelines_from_json(json.dumps([VALID, VALID | {"events": [{}]}]))


@pytest.mark.parametrize("text", ["", "nonsense", "[" * 100_000, "1" * 5000, '"text"', "null", '{"version": NaN}'])
def test_what_is_no_timeline_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="This is no timeline"):
        Timeline.from_json(text)


def test_members_that_a_later_release_may_add_are_passed_over() -> None:
    assert Timeline.from_json(json.dumps(VALID | {"colour": "blue"})) == Timeline.from_json(json.dumps(VALID))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from([*VALID, *FETCH, "label", "tokens", "detail"]))
def test_any_json_is_read_or_refused(value: object, key: str) -> None:
    raw = VALID | {key: value} if key in VALID else VALID | {"events": [FETCH | {key: value}]}
    try:
        timeline = Timeline.from_json(json.dumps(raw))
    except InvalidInputError:
        return
    assert Timeline.from_json(timeline.to_json()) == timeline
