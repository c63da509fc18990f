"""Which differences rounding may make."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.bench.checking import Check
from stream2llm_rag.bench.equality import Answer, first_difference, judge, shift


def answer(*likely: dict[int, float]) -> Answer:
    """Greedy: of each position the likeliest token."""
    return Answer(tuple(max(one, key=one.__getitem__) for one in likely), likely)


REFERENCE = answer({1: -0.1, 2: -3.0}, {3: -0.70, 4: -0.71}, {5: -0.2, 6: -2.0})
ROUNDED = answer({1: -0.1, 2: -3.01}, {3: -0.705, 4: -0.706}, {5: -0.2, 6: -2.0})
NEAR_TIE = answer({1: -0.1, 2: -3.0}, {4: -0.70, 3: -0.71}, {9: -0.1})
WRONG = answer({2: -0.1, 1: -3.0}, {3: -0.7})


def test_equal_answers_are_no_difference() -> None:
    assert first_difference(ROUNDED, REFERENCE) is None
    found = judge([REFERENCE], [REFERENCE], [ROUNDED])
    assert (found.num_equal, found.num_wrong, found.differences) == (1, 0, ())


def test_noise_is_what_stock_shows_against_itself() -> None:
    assert math.isclose(judge([REFERENCE], [REFERENCE], [ROUNDED]).noise, 0.01)


def test_a_near_tie_may_fall_either_way_and_what_follows_it_does_not_count() -> None:
    found = judge([NEAR_TIE], [REFERENCE], [ROUNDED])
    assert (found.num_equal, found.num_wrong) == (0, 0)
    assert found.differences[0].position == 1
    assert math.isclose(found.differences[0].gap, 0.01)
    assert math.isclose(shift(NEAR_TIE, REFERENCE), 0.01)


def test_the_same_difference_is_wrong_where_stock_is_exact() -> None:
    assert judge([NEAR_TIE], [REFERENCE], [REFERENCE]).num_wrong == 1


def test_another_token_is_wrong() -> None:
    assert judge([WRONG], [REFERENCE], [ROUNDED]).num_wrong == 1


def test_a_token_that_was_not_even_likely_and_an_answer_cut_short_are_wrong() -> None:
    cut = Answer(REFERENCE.token_ids[:1], REFERENCE.logprobs[:1])
    longer = Answer((*REFERENCE.token_ids, 7), (*REFERENCE.logprobs, {7: -0.1}))
    unlikely = answer({8: -0.1, 1: -0.2})
    verdict = judge([cut, longer, unlikely], [REFERENCE] * 3, [ROUNDED] * 3)
    assert [difference.gap for difference in verdict.differences] == [math.inf] * 3
    assert verdict.num_wrong == 3


def test_a_check_whose_control_finds_no_fault_does_not_hold() -> None:
    fine, blind = judge([REFERENCE], [REFERENCE], [ROUNDED]), judge([WRONG], [REFERENCE], [ROUNDED])
    assert Check(fine, blind, num_evictions=3).holds
    assert not Check(fine, fine, num_evictions=3).holds
    assert not Check(blind, blind, num_evictions=3).holds


@given(st.lists(st.floats(-5, -0.1), min_size=3, max_size=3, unique=True), st.floats(0, 0.5), st.data())
def test_rounding_within_the_noise_is_never_called_wrong(logprobs: list[float], noise: float, data: st.DataObject) -> None:
    reference = answer(dict(enumerate(logprobs)))
    moved = answer({token: value + data.draw(st.floats(-noise, noise)) for token, value in enumerate(logprobs)})
    extreme = answer({token: value + noise * 1.001 + 1e-9 for token, value in enumerate(logprobs)})
    assert judge([moved], [reference], [extreme]).num_wrong == 0
