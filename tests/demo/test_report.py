from __future__ import annotations

import json

import pytest

from stream2llm_rag.demo import Answers, Report
from stream2llm_rag.timeline import timelines_from_json
from tests.demo.samples import answers, result

RUN_KEYS = {
    "ttft_s",
    "arrival_to_first_token_s",
    "retrieval_s",
    "prompt_tokens",
    "overlap_tokens",
    "num_pages",
    "invalidated_tokens",
}
COMPARISON_KEYS = {
    "streaming",
    "non_streaming",
    "last_delta_tokens",
    "ttft_speedup",
    "answers_equal",
    "control_differs",
}


def report(*several: Answers) -> Report:
    return Report("tiny", several or (answers(),), "/out/timeline.html")


def test_the_json_has_every_measure_under_its_name() -> None:
    stored = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert stored.keys() == COMPARISON_KEYS | {"timeline_html", "model", "requests", "timelines"}
    assert stored["streaming"].keys() == stored["non_streaming"].keys() == RUN_KEYS
    assert stored["timeline_html"] == "/out/timeline.html"
    assert stored["ttft_speedup"] == 8.0


def test_the_json_has_the_same_of_each_question_and_medians_above() -> None:
    stored = report(answers("A?", 0.1, 1.0), answers("B?", 0.2, 3.0), answers("C?", 0.3, 9.0)).to_json()
    assert [request.keys() for request in stored["requests"]] == [COMPARISON_KEYS | {"question"}] * 3
    assert [request["question"] for request in stored["requests"]] == ["A?", "B?", "C?"]
    assert [request["streaming"]["ttft_s"] for request in stored["requests"]] == [0.1, 0.2, 0.3]
    assert stored["streaming"]["ttft_s"] == 0.2
    assert stored["ttft_speedup"] == pytest.approx(15.0)


def test_the_timelines_of_the_json_can_be_read_again() -> None:
    made = report(answers("A?"), answers("B?"))
    stored = made.to_json()
    assert timelines_from_json(json.dumps(stored["timelines"])) == made.timelines
    assert [(each.question, each.mode) for each in made.timelines] == [
        ("A?", "streaming"),
        ("A?", "non_streaming"),
        ("B?", "streaming"),
        ("B?", "non_streaming"),
    ]


DIFFERENT = answers(streamed=result(token_ids=(9,)))
BLIND = answers(control=result(token_ids=(1, 2, 3)))


@pytest.mark.parametrize(
    ("several", "holds"),
    [((answers(),), True), ((DIFFERENT,), False), ((BLIND,), False), ((answers(), BLIND, answers()), False)],
)
def test_it_holds_where_every_answer_is_equal_and_every_control_differs(several: tuple[Answers, ...], holds: bool) -> None:
    assert report(*several).holds == holds
    assert all(finding.is_good for finding in report(*several).findings()) == holds


def test_the_findings_say_what_is_wrong() -> None:
    assert "The two ways answer differently." in [finding.text for finding in report(DIFFERENT).findings()]
    assert any("equal answers say nothing" in finding.text for finding in report(BLIND).findings())


def test_the_findings_compare_the_times() -> None:
    assert next(report().findings()).text == "First token 250 ms after the final context, instead of 2.00 s: 8.0 times sooner."


def test_the_table_has_both_ways_side_by_side() -> None:
    assert report().rows() == [
        ("Retrieval", "4.00 s", "4.00 s"),
        ("TTFT after the final context", "250 ms", "2.00 s"),
        ("Question to first token", "4.25 s", "6.00 s"),
        ("Pages", "2", "2"),
        ("Prompt tokens", "1,100", "1,100"),
        ("Tokens computed before the final context", "600", "0"),
        ("Tokens whose KV a change of context cost", "0", "0"),
    ]
