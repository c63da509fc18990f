from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Event, EventKind, Timeline, render_terminal
from stream2llm_rag.timeline.text import num_columns
from tests.timeline.samples import crawl, hostile, timelines

BOTH = [crawl("streaming"), crawl("non_streaming")]
COLOUR = re.compile(r"\x1b\[\d+m")


def row(picture: str, name: str, occurrence: int = 0) -> str:
    return [line for line in picture.splitlines() if line.startswith(name)][occurrence]


@settings(max_examples=50)
@given(st.lists(timelines, min_size=1, max_size=2), st.integers(40, 140))
def test_no_line_is_wider_than_the_terminal(several: list[Timeline], width: int) -> None:
    assert all(num_columns(line) <= width for line in render_terminal(several, width).splitlines())


@given(st.lists(timelines, min_size=1, max_size=2))
@settings(max_examples=50)
def test_colours_change_nothing_but_colours(several: list[Timeline]) -> None:
    assert COLOUR.sub("", render_terminal(several, color=True)) == render_terminal(several)


def test_words_of_strangers_cannot_command_the_terminal() -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", render_terminal(hostile()))


def test_each_page_has_a_lane_with_its_name() -> None:
    picture = render_terminal(BOTH)
    assert [row(picture, f"Page {index}").count("━") > 0 for index in range(9)] == [True] * 9


def test_prefill_stands_under_retrieval_in_one_run_and_behind_it_in_the_other() -> None:
    picture = render_terminal(BOTH)
    end_of_retrieval = row(picture, "Page 8").rindex("━")
    assert row(picture, "prefill", 0).index("█") < end_of_retrieval
    assert row(picture, "prefill", 1).index("█") > end_of_retrieval


def test_the_answer_of_the_streamed_run_begins_further_left() -> None:
    picture = render_terminal(BOTH)
    assert row(picture, "answer", 0).index("━") < row(picture, "answer", 1).index("━")
    assert "┊ final context 6.12 s, │ first token 6.25 s" in picture
    assert "First token 125 ms after the final context, instead of 1.12 s: 9.0 times sooner." in picture


def test_many_pages_are_packed() -> None:
    picture = render_terminal([crawl("streaming", num_pages=200, num_steps=2000)])
    assert len(picture.splitlines()) < 20
    assert row(picture, "pages").count("━") > 50


def test_the_curve_of_the_cache_rises_to_the_top() -> None:
    picture = render_terminal([crawl("streaming")])
    levels = row(picture, "tokens in the KV cache").removeprefix("tokens in the KV cache").strip()
    assert levels.strip("│┊")[0] == "▁"
    assert levels[-1] == "█"


@pytest.mark.parametrize("kind", [*EventKind])
def test_every_kind_of_event_can_be_drawn(kind: EventKind) -> None:
    assert render_terminal([Timeline("Why?", "streaming", (Event(kind, 1.0, 2.0),))])


def test_a_terminal_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="width is 39"):
        render_terminal(BOTH, width=39)


def test_no_timeline_at_all_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        render_terminal([])
