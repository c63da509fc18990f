"""What the demo measured: one question answered twice, and many of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from stream2llm_rag.errors import EngineError
from stream2llm_rag.result import RAGResult


@dataclass(frozen=True, slots=True)
class Run:
    """The measures of one answer, by their names in :class:`RAGResult`; ``num_pages`` are those that the model saw.

    Of several answers: the median of each.
    """

    ttft_s: float
    arrival_to_first_token_s: float
    retrieval_s: float
    prompt_tokens: float
    overlap_tokens: float
    num_pages: float
    invalidated_tokens: float

    @classmethod
    def of(cls, result: RAGResult) -> Run:
        """The measures of ``result``."""
        return cls(
            result.ttft_s,
            result.arrival_to_first_token_s,
            result.retrieval_s,
            result.prompt_tokens,
            result.overlap_tokens,
            len(result.documents),
            result.invalidated_tokens,
        )

    @classmethod
    def median(cls, runs: Sequence[Run]) -> Run:
        """The median of each measure over ``runs``."""
        return cls(**{name: median(values) for name, values in _columns(runs).items()})


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same pages at the same moments, answered both ways. Of several questions: medians, and what holds for all of them.

    ``last_delta_tokens`` is by how much the last page lengthened the streamed prompt. ``control_differs``: the answer without
    one of the pages is another, so that equal answers mean something.
    """

    streaming: Run
    non_streaming: Run
    last_delta_tokens: float
    answers_equal: bool
    control_differs: bool

    @property
    def ttft_speedup(self) -> float:
        """How many times sooner the first token came after the final context."""
        return self.non_streaming.ttft_s / self.streaming.ttft_s

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, and ``ttft_speedup``."""
        return {**asdict(self), "ttft_speedup": self.ttft_speedup}


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one question: streamed, the usual way, and the usual way without one of the documents.

    ``by_rank`` is there where the context was updated: streamed again in the retriever's order.
    """

    streamed: RAGResult
    usual: RAGResult
    control: RAGResult
    by_rank: RAGResult | None = None


def compare(answers: Answers) -> Comparison:
    """Compare the answers to one question. :class:`EngineError` where one has no token, as nothing was measured then."""
    for result in (answers.streamed, answers.usual, answers.control):
        if not result.token_ids:
            raise EngineError(f"The engine ended an answer without a token (finish_reason {result.finish_reason!r}).")
    return Comparison(
        streaming=Run.of(answers.streamed),
        non_streaming=Run.of(answers.usual),
        last_delta_tokens=answers.streamed.last_delta_tokens,
        answers_equal=answers.streamed.token_ids == answers.usual.token_ids,
        control_differs=answers.control.token_ids != answers.usual.token_ids,
    )


def summarize(comparisons: Sequence[Comparison]) -> Comparison:
    """One comparison for all: medians, and only what holds everywhere holds. At least one is needed."""

    def medians(of: Callable[[Comparison], Run]) -> Run:
        return Run.median([of(comparison) for comparison in comparisons])

    return Comparison(
        streaming=medians(lambda comparison: comparison.streaming),
        non_streaming=medians(lambda comparison: comparison.non_streaming),
        last_delta_tokens=median(comparison.last_delta_tokens for comparison in comparisons),
        answers_equal=all(comparison.answers_equal for comparison in comparisons),
        control_differs=all(comparison.control_differs for comparison in comparisons),
    )


def _columns(runs: Sequence[Run]) -> dict[str, list[float]]:
    rows = [asdict(run) for run in runs]
    return {name: [row[name] for row in rows] for name in rows[0]}
