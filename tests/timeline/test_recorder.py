from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Event, EventKind, Recorder, recorder


def new(max_events: int = 100) -> Recorder:
    return Recorder("Why?", "streaming", arrived_at=100.0, max_events=max_events)


def test_times_count_from_the_arrival_of_the_question() -> None:
    log = new()
    log.record(EventKind.COMPUTED, at=101.0, until=101.5, tokens=512)
    assert log.timeline().events == (Event(EventKind.COMPUTED, 1.0, 1.5, tokens=512),)


def test_without_a_time_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: 107.0, time=lambda: 1e9))
    log = new()
    log.record(EventKind.FIRST_TOKEN)
    assert log.timeline().events == (Event(EventKind.FIRST_TOKEN, 7.0, 7.0),)
    assert log.timeline().asked_at == 1e9 - 7.0


def test_what_began_before_the_question_counts_from_its_arrival() -> None:
    log = new()
    log.record(EventKind.FETCH, at=90.0, until=101.0)
    log.record(EventKind.FETCH, at=90.0, until=95.0)
    assert [(event.start_s, event.end_s) for event in log.timeline().events] == [(0.0, 1.0), (0.0, 0.0)]


def test_an_end_before_the_start_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        new().record(EventKind.COMPUTED, at=102.0, until=101.0)


def test_an_unknown_mode_is_refused_at_once() -> None:
    with pytest.raises(InvalidInputError):
        Recorder("Why?", "fast", 0.0)


def test_a_full_recorder_keeps_the_milestones_and_counts_what_it_dropped() -> None:
    log = new(max_events=2)
    for index in range(5):
        log.record(EventKind.COMPUTED, at=101.0 + index, tokens=1)
    log.record(EventKind.FINAL_CONTEXT, at=110.0)
    log.record(EventKind.FIRST_TOKEN, at=111.0)
    timeline = log.timeline({"ttft_s": 1.0})
    assert [event.kind for event in timeline.events] == ["computed", "computed", "final_context", "first_token"]
    assert timeline.measures == {"ttft_s": 1.0, "num_events_dropped": 3}


def test_of_a_milestone_the_first_counts() -> None:
    log = new()
    log.record(EventKind.FIRST_TOKEN, at=101.0)
    log.record(EventKind.FIRST_TOKEN, at=105.0)
    assert [event.start_s for event in log.timeline().events] == [1.0]


def test_a_timeline_taken_early_does_not_grow() -> None:
    log = new()
    early = log.timeline()
    log.record(EventKind.DELTA, at=101.0)
    assert early.events == ()
    assert early.measures == {}


def test_a_page_is_labelled_with_its_title_and_keeps_its_address() -> None:
    log = new()
    log.record_retrieval(RetrievalEvent("fetch", "http://a/b", 101.0, 102.0, title="A page"))
    log.record_retrieval(RetrievalEvent("skip", "http://a/c", 103.0, 103.0, detail="robots.txt"))
    assert log.timeline().events == (
        Event(EventKind.FETCH, 1.0, 2.0, "A page", detail="http://a/b"),
        Event(EventKind.SKIP, 3.0, 3.0, "http://a/c", detail="robots.txt"),
    )


@pytest.mark.parametrize("kind", ["hop", "first_token", "done", ""])
def test_a_kind_of_the_retriever_s_own_stands_as_a_fetch_that_names_it(kind: str) -> None:
    log = new()
    log.record_retrieval(RetrievalEvent(kind, "index", 101.0, 102.0, detail="L = 80"))
    detail = f"{kind} · L = 80" if kind else "L = 80"
    assert log.timeline().events == (Event(EventKind.FETCH, 1.0, 2.0, "index", detail=detail),)


@pytest.mark.parametrize("kind", ["retry", "list", "search"])
def test_what_is_no_page_stands_as_a_step(kind: str) -> None:
    log = new()
    log.record_retrieval(RetrievalEvent(kind, "http://a", 101.0, 102.0, detail="HTTP 503"))
    assert log.timeline().events == (Event(EventKind.RETRIEVAL_STEP, 1.0, 2.0, "http://a", detail=f"{kind} · HTTP 503"),)


def test_the_steps_that_led_to_a_page_are_events_too() -> None:
    log = new()
    steps = (
        RetrievalEvent("robots", "http://a/robots.txt", 101.0, 102.0),
        RetrievalEvent("download", "http://a/b", 102.0, 103.0, "12 bytes"),
    )
    log.record_retrieval(RetrievalEvent("fetch", "http://a/b", 101.0, 104.0, title="A page", steps=steps))
    assert log.timeline().events == (
        Event(EventKind.RETRIEVAL_STEP, 1.0, 2.0, "http://a/robots.txt", detail="robots"),
        Event(EventKind.FETCH, 1.0, 4.0, "A page", detail="http://a/b"),
        Event(EventKind.RETRIEVAL_STEP, 2.0, 3.0, "http://a/b", detail="download · 12 bytes"),
    )


@given(st.floats(), st.floats())
def test_impossible_times_of_a_retriever_do_not_raise(started_s: float, ended_s: float) -> None:
    log = new()
    log.record_retrieval(RetrievalEvent("fetch", "http://a", started_s, ended_s))
    assert len(log.timeline().events) == 1


def test_an_impossible_end_is_put_at_the_start_and_the_other_way_round() -> None:
    log = new()
    log.record_retrieval(RetrievalEvent("fetch", "nan", 101.0, float("nan")))
    log.record_retrieval(RetrievalEvent("fetch", "wall clock", 1.7e9, 102.0))
    log.record_retrieval(RetrievalEvent("fetch", "backwards", 104.0, 103.0))
    assert [(event.start_s, event.end_s) for event in log.timeline().events] == [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]
