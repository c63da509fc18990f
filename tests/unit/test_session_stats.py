from __future__ import annotations

from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.session import SessionStats


def stats(*records: tuple[StepKind, float, float, int]) -> SessionStats:
    made = SessionStats()
    for kind, started_s, ended_s, num_tokens in records:
        made.add(StepRecord("id", kind, started_s, ended_s, num_tokens))
    return made


def test_a_step_that_was_running_at_the_hand_over_is_no_overlap() -> None:
    made = stats((StepKind.COMPUTED, 1, 2, 100), (StepKind.COMPUTED, 3, 4, 10), (StepKind.FINAL, 4.1, 4.1, 110))
    assert made.overlap_tokens == 110
    assert [made.overlap_at(at) for at in (5.0, 3.5, 1.5)] == [110, 100, 0]


def test_a_step_in_flight_whose_output_comes_after_the_finish_is_none_either() -> None:
    made = stats((StepKind.COMPUTED, 1, 2, 100), (StepKind.FINAL, 3.1, 3.1, 110), (StepKind.COMPUTED, 3, 4, 10))
    assert made.overlap_at(3.0) == 100


def test_steps_after_the_finish_are_not_taken_off() -> None:
    made = stats((StepKind.COMPUTED, 1, 2, 100), (StepKind.FINAL, 3, 3, 100), (StepKind.COMPUTED, 3.1, 4, 50))
    assert made.overlap_at(2.9) == 100


def test_without_a_finish_there_is_no_overlap() -> None:
    assert stats((StepKind.COMPUTED, 1, 2, 100)).overlap_at(9.0) == 0
