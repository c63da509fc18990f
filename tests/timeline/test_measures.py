from __future__ import annotations

import pytest

from stream2llm_rag.timeline import Event, EventKind, Timeline
from stream2llm_rag.timeline.measures import comparison, count, measures_of, name_of, seconds, table, value_of
from tests.timeline.samples import crawl


def test_events_alone_give_the_well_known_measures() -> None:
    assert measures_of(crawl("streaming")) == {
        "ttft_s": 0.125,
        "arrival_to_first_token_s": 6.25,
        "retrieval_s": 6.0,
        "num_pages": 9,
        "overlap_tokens": 9000,
        "output_tokens": 64,
        "num_evictions": 0,
    }
    assert measures_of(crawl("non_streaming"))["overlap_tokens"] == 0


def test_measures_of_the_result_overrule_what_the_events_show() -> None:
    timeline = Timeline("Why?", "streaming", crawl("streaming").events, {"ttft_s": 0.5, "queue_s": 1.0})
    assert measures_of(timeline)["ttft_s"] == 0.5
    assert next(iter(measures_of(timeline))) == "ttft_s"
    assert list(measures_of(timeline))[-1] == "queue_s"


def test_a_measure_without_its_events_is_left_out() -> None:
    assert measures_of(Timeline("Why?", "streaming")) == {"num_pages": 0, "num_evictions": 0}
    token = Event(EventKind.FIRST_TOKEN, 1.0, 1.0)
    final = Event(EventKind.FINAL_CONTEXT, 2.0, 2.0)
    assert "ttft_s" not in measures_of(Timeline("Why?", "streaming", (token, final)))


def test_the_table_has_every_measure_and_a_gap_where_a_run_has_none() -> None:
    both = table([Timeline("Why?", "streaming"), crawl("non_streaming")])
    assert both["ttft_s"] == [None, 1.125]
    assert both["num_pages"] == [0, 9]
    assert next(iter(both)) == "ttft_s"


def test_the_comparison_says_how_many_times_sooner() -> None:
    both = [crawl("non_streaming"), crawl("streaming")]
    assert comparison(both) == "First token 125 ms after the final context, instead of 1.12 s: 9.0 times sooner."


def test_a_slower_stream_is_called_slower() -> None:
    slow = Timeline("Why?", "streaming", (), {"ttft_s": 2.0})
    usual = Timeline("Why?", "non_streaming", (), {"ttft_s": 1.0})
    assert comparison([slow, usual]) == "First token 2.00 s after the final context, instead of 1.00 s: 2.0 times later."


def test_many_runs_are_compared_by_their_medians() -> None:
    ours = [Timeline("Why?", "streaming", (), {"ttft_s": value}) for value in (1.0, 2.0, 90.0)]
    usual = Timeline("Why?", "non_streaming", (), {"ttft_s": 4.0})
    sentence = comparison([*ours, usual])
    assert sentence == "First token, in the median, 2.00 s after the final context, instead of 4.00 s: 2.0 times sooner."


@pytest.mark.parametrize("ttft_s", [0.0, -1.0])
def test_there_is_no_comparison_with_a_run_that_did_not_wait(ttft_s: float) -> None:
    ours = Timeline("Why?", "streaming", (), {"ttft_s": ttft_s})
    assert comparison([ours, crawl("non_streaming")]) is None
    assert comparison([crawl("streaming")]) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 s"),
        (0.0084, "8.40 ms"),
        (0.0123, "12.3 ms"),
        (0.12, "120 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
        (123.4, "123 s"),
    ],
)
def test_durations_have_three_digits(value: float, shown: str) -> None:
    assert seconds(value) == shown


def test_counts_are_grouped_and_fractions_short() -> None:
    assert [count(12863), count(2.5), count(2.0)] == ["12,863", "2.5", "2"]


def test_the_unit_follows_from_the_name() -> None:
    assert (name_of("queue_wait_s"), value_of("queue_wait_s", 0.5)) == ("Queue wait", "500 ms")
    assert (name_of("num_hops"), value_of("num_hops", 5)) == ("Hops", "5")
    assert name_of("overlap_tokens") == "Tokens computed before the final context"
