from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.demo import Comparison, Run, compare, summarize
from stream2llm_rag.errors import EngineError
from tests.demo.samples import answers, result

numbers = st.integers(1, 10**6)
runs = st.builds(Run, *[numbers] * 7)
comparisons = st.builds(Comparison, runs, runs, numbers, st.booleans(), st.booleans())


def test_the_measures_are_those_of_the_results() -> None:
    comparison = compare(answers())
    assert comparison.streaming == Run(0.25, 4.25, 4.0, 1100, 600, 2, 0)
    assert comparison.non_streaming == Run(2.0, 6.0, 4.0, 1100, 0, 2, 0)
    assert comparison.last_delta_tokens == 500
    assert comparison.ttft_speedup == 8.0


def test_answers_are_equal_where_every_token_is() -> None:
    assert compare(answers()).answers_equal
    assert not compare(answers(streamed=result(token_ids=(1, 2, 9)))).answers_equal
    assert not compare(answers(streamed=result(token_ids=(1, 2)))).answers_equal


def test_equal_text_of_other_tokens_is_not_an_equal_answer() -> None:
    assert not compare(answers(streamed=result(text="yes", token_ids=(7, 8, 9)))).answers_equal


def test_a_control_that_answers_the_same_does_not_differ() -> None:
    assert compare(answers()).control_differs
    assert not compare(answers(control=result(token_ids=(1, 2, 3)))).control_differs


@pytest.mark.parametrize("which", ["streamed", "usual", "control"])
def test_an_answer_without_a_token_is_an_error_and_not_a_measure(which: str) -> None:
    with pytest.raises(EngineError, match=r"without a token.*abort"):
        compare(answers(**{which: result(token_ids=(), finish_reason="abort")}))


@given(comparisons)
def test_a_single_comparison_is_its_own_summary(comparison: Comparison) -> None:
    assert summarize([comparison]) == comparison


@given(st.lists(comparisons, min_size=1, max_size=9))
def test_a_summary_has_medians_and_what_holds_for_all(several: list[Comparison]) -> None:
    summary = summarize(several)
    assert summary.streaming.ttft_s == median(each.streaming.ttft_s for each in several)
    assert summary.non_streaming.num_pages == median(each.non_streaming.num_pages for each in several)
    assert summary.last_delta_tokens == median(each.last_delta_tokens for each in several)
    assert summary.answers_equal == (not any(not each.answers_equal for each in several))
    assert summary.control_differs == (not any(not each.control_differs for each in several))
    assert summary.ttft_speedup == summary.non_streaming.ttft_s / summary.streaming.ttft_s
