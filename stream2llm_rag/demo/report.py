"""What the demo found, as JSON and as words. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from stream2llm_rag.demo.comparison import Answers, Comparison, compare, summarize
from stream2llm_rag.timeline import Timeline, timelines_to_json
from stream2llm_rag.timeline.measures import comparison as compare_ttft
from stream2llm_rag.timeline.measures import name_of, value_of

_ROWS = (
    "retrieval_s",
    "ttft_s",
    "arrival_to_first_token_s",
    "num_pages",
    "prompt_tokens",
    "overlap_tokens",
    "invalidated_tokens",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence on what came out, and whether it is as it should be."""

    is_good: bool
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """The answers to every question; at least one is needed. ``timeline_html`` is where the page with the timelines lies."""

    model: str
    answers: tuple[Answers, ...]
    timeline_html: str

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One for each question. EngineError where an answer has no token."""
        return tuple(map(compare, self.answers))

    @property
    def summary(self) -> Comparison:
        """One comparison for all questions: medians, and what holds for every one."""
        return summarize(self.comparisons)

    @property
    def timelines(self) -> tuple[Timeline, ...]:
        """Of each question the streamed run, then the usual one."""
        return tuple(chain.from_iterable((each.streamed.timeline, each.usual.timeline) for each in self.answers))

    @property
    def holds(self) -> bool:
        """Whether streaming changed no answer, and the control shows that it could have been seen."""
        return self.summary.answers_equal and self.summary.control_differs

    def to_json(self) -> dict[str, Any]:
        """Plain values: the summary under its own names, ``requests`` with the same for each question, and the timelines."""
        requests = [
            {"question": answers.streamed.question, **comparison.to_json(), **_by_rank(answers)}
            for answers, comparison in zip(self.answers, self.comparisons, strict=True)
        ]
        return {
            "model": self.model,
            **self.summary.to_json(),
            "timeline_html": self.timeline_html,
            "requests": requests,
            "timelines": json.loads(timelines_to_json(self.timelines)),
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: what was measured, its value when streaming, and the usual way; medians of several questions."""
        ours, usual = self.summary.streaming, self.summary.non_streaming
        return [(name_of(name), value_of(name, getattr(ours, name)), value_of(name, getattr(usual, name))) for name in _ROWS]

    def findings(self) -> Iterator[Finding]:
        """What came out."""
        summary = self.summary
        yield Finding(True, compare_ttft(self.timelines) or "")
        if summary.answers_equal:
            num_tokens = sum(len(each.usual.token_ids) for each in self.answers)
            yield Finding(True, f"Both ways answer alike, token by token: all {num_tokens} tokens are equal.")
        else:
            yield Finding(False, "The two ways answer differently.")
        if None not in (by_rank := [each.by_rank for each in self.answers]):
            ranked = sum(each.invalidated_tokens for each in by_rank if each)
            stable = sum(each.streamed.invalidated_tokens for each in self.answers)
            words = (
                f"Tokens invalidated by updates: {stable:,} with documents kept at their places, {ranked:,} in order of rank."
            )
            yield Finding(stable <= ranked, words)
        if summary.control_differs:
            yield Finding(
                True, "Control: with the last document left out the answer is another, so a wrong context would show."
            )
        else:
            yield Finding(
                False, "Control: with the last document left out the answer is the same, so equal answers say nothing."
            )


def _by_rank(answers: Answers) -> dict[str, Any]:
    return {} if answers.by_rank is None else {"invalidated_tokens_by_rank": answers.by_rank.invalidated_tokens}
