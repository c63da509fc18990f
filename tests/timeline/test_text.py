from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.timeline.text import MAX_CHARACTERS, clean, num_columns, shorten
from tests.timeline.samples import words


@given(words)
def test_clean_text_is_one_line_of_visible_characters(text: str) -> None:
    shown = clean(text)
    assert not any(unicodedata.category(character).startswith("C") for character in shown)
    assert shown == " ".join(shown.split())
    assert len(shown) <= MAX_CHARACTERS


@given(words)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(words, st.integers(0, 40))
def test_shortened_text_takes_no_more_columns_than_it_may(text: str, columns: int) -> None:
    assert num_columns(shorten(text, columns)) <= columns


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0;payload\x1b\\after", "after"),
        ("\x1b(Bafter", "after"),
        ("a\u202eb\u2066c\u200bd\ufeff", "abcd"),
        ("a\r\n\tb\u2028c\u00a0d", "a b c d"),
        ("a\x00b\x7fc", "abc"),
        ("\ud800\ufffe", "\ufffd\ufffd"),
        ("e" + "\u0301" * 50, "e" + "\u0301" * 4),
        ("שלום 漢字 é 🙂", "שלום 漢字 é 🙂"),
    ],
)
def test_cleaning_keeps_words_and_drops_commands(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_long_text_ends_with_an_ellipsis() -> None:
    assert clean("x" * 500) == "x" * (MAX_CHARACTERS - 1) + "…"
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("漢字漢字", 4) == "漢…"
    assert shorten("abcd", 4) == "abcd"
    assert shorten("abcd", 0) == ""


def test_text_far_behind_what_can_be_shown_is_not_looked_at() -> None:
    assert clean("\x1b[0m" * 10 + "end") == "end"
    assert clean("\x1b[0m" * 10_000 + "end") == ""


def test_columns_count_wide_characters_twice_and_marks_not_at_all() -> None:
    assert num_columns("ab") == 2
    assert num_columns("漢字") == 4
    assert num_columns("e\u0301") == 1
