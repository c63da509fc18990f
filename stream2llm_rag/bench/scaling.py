"""A workload made for large machines, brought to the size and the speed of a small one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.trace import Chunk, Query, Trace

StepSeconds = Callable[[Sequence[tuple[int, int]]], float]


@dataclass(frozen=True, slots=True)
class Scale:
    """By what to multiply the tokens and the times of a trace."""

    tokens: float
    time: float

    def __post_init__(self) -> None:
        if not (0 < self.tokens <= 1 and self.time > 0):
            raise InvalidInputError(f"the scale is {self}. Write tokens above 0, to 1, and a time above 0.")


def scale_trace(trace: Trace, scale: Scale) -> Trace:
    """``trace`` with every time and every number of prompt tokens scaled. What brings or keeps a token still does."""
    return tuple(_scale_query(query, scale) for query in trace)


def _scale_query(query: Query, scale: Scale) -> Query:
    chunks, length = [], 0
    for chunk in query.chunks:
        num_tokens = _scale_count(chunk.num_tokens, scale)
        num_kept = None if chunk.num_kept is None else min(_scale_count(chunk.num_kept, scale), length)
        length = (length if num_kept is None else num_kept) + num_tokens
        chunks.append(Chunk(chunk.after_s * scale.time, num_tokens, num_kept))
    return Query(query.query_id, query.arrival_s * scale.time, tuple(chunks), query.num_output_tokens)


def _scale_count(count: int, scale: Scale) -> int:
    """What is some stays some."""
    return max(round(count * scale.tokens), min(count, 1))


@dataclass(frozen=True, slots=True)
class Speed:
    """A machine: the seconds of its steps, of at most ``token_budget`` tokens."""

    step_time: StepSeconds
    token_budget: int

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds that a prompt takes which is alone on the machine."""
        starts = range(0, num_tokens, self.token_budget)
        return sum(self.step_time([(min(self.token_budget, num_tokens - start), start)]) for start in starts)


def same_load(trace: Trace, tokens: float, made_for: Speed, machine: Speed) -> Scale:
    """The scale of time at which ``trace``, its prompts scaled by ``tokens``, loads ``machine`` as it loads ``made_for``.

    The mean prefill then takes the same share of the time between two arrivals, and of a retrieval.
    """
    there_s = fmean(made_for.prefill_s(query.num_prompt_tokens) for query in trace)
    here_s = fmean(machine.prefill_s(query.num_prompt_tokens) for query in scale_trace(trace, Scale(tokens, 1.0)))
    return Scale(tokens, here_s / there_s)


def load(trace: Trace, machine: Speed) -> float:
    """The share of time for which ``machine`` would be busy if each prompt were computed once, alone; above 1, overloaded."""
    arrivals = [query.arrival_s for query in trace]
    span_s = max(arrivals) - min(arrivals)
    return sum(machine.prefill_s(query.num_prompt_tokens) for query in trace) / span_s if span_s else float("inf")
