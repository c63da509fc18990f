"""What became of each request of a workload, and the figures over all of them.

Simulation and benchmarks on the real engine yield the same records, so that one report prints both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stream2llm_rag.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request. Times are seconds since the trace began, infinite where it never came to that.

    ``num_computed`` counts every token that a step computed for it, those that were lost and computed again too.
    ``num_overlap`` had KV when the final context came; ``num_cached`` came from the prefix cache, or back from host memory;
    ``num_invalidated`` were lost because the context changed; ``num_evicted`` because others needed the room, in
    ``num_evictions`` evictions, and had to be brought back.
    ``num_discarded`` were sampled before the final context, to no use (vLLM's own streaming).
    """

    query_id: str
    arrival_s: float
    final_s: float
    num_prompt_tokens: int
    first_token_s: float = math.inf
    finished_s: float = math.inf
    num_output_tokens: int = 0
    num_computed: int = 0
    num_overlap: int = 0
    num_cached: int = 0
    num_invalidated: int = 0
    num_evicted: int = 0
    num_evictions: int = 0
    num_discarded: int = 0

    @property
    def ttft_s(self) -> float:
        """From the final context to the first token."""
        return self.first_token_s - self.final_s

    @property
    def arrival_to_first_token_s(self) -> float:
        """From the question to the first token."""
        return self.first_token_s - self.arrival_s

    @property
    def is_finished(self) -> bool:
        """Whether the answer came to its end."""
        return self.finished_s < math.inf


@dataclass(frozen=True, slots=True)
class Percentiles:
    """By the nearest-rank rule: each is the value of one request."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures over one run.

    The percentiles, over ``num_measured`` requests, leave out ramp-up and drain; all else is over all requests.
    ``completion_s`` is from the first arrival to the end of the last answer, infinite where one never came to its end.
    ``throughput_rps`` are answered requests by the seconds from the first arrival to the last end there was.
    """

    num_requests: int
    num_measured: int
    num_unfinished: int
    ttft_s: Percentiles
    arrival_to_first_token_s: Percentiles
    completion_s: float
    throughput_rps: float
    num_prompt_tokens: int
    num_computed: int
    num_cached: int
    num_invalidated: int
    num_evicted: int
    num_evictions: int
    deadlocked: bool = False


def summarise(records: Sequence[RequestRecord], *, trim_s: float = 0.0, deadlocked: bool = False) -> Summary:
    """The figures over ``records``; the percentiles without those that arrived in the first or the last ``trim_s`` seconds.

    A request that was never answered counts as infinite. Raises :class:`InvalidInputError` where nothing is left.
    """
    return summarise_rounds([records], trim_s=trim_s, deadlocked=deadlocked)


def summarise_rounds(rounds: Sequence[Sequence[RequestRecord]], *, trim_s: float = 0.0, deadlocked: bool = False) -> Summary:
    """The figures over several ``rounds``, each trimmed for itself, as :func:`summarise` has them. Their seconds add up."""
    if not all(rounds) or not (math.isfinite(trim_s) and trim_s >= 0):
        counts = [len(records) for records in rounds]
        raise InvalidInputError(f"trim_s is {trim_s} and there are {counts} records. Write 0 or more of one or more.")
    measured = [record for records in rounds for record in between(records, trim_s)]
    if not measured:
        raise InvalidInputError(f"trim_s is {trim_s}, and all queries arrive within twice that. Write less.")
    records = [record for one in rounds for record in one]
    num_finished = sum(record.is_finished for record in records)
    span_s = sum(map(_span_s, rounds))
    return Summary(
        num_requests=len(records),
        num_measured=len(measured),
        num_unfinished=len(records) - num_finished,
        ttft_s=percentiles(record.ttft_s for record in measured),
        arrival_to_first_token_s=percentiles(record.arrival_to_first_token_s for record in measured),
        completion_s=span_s if num_finished == len(records) else math.inf,
        throughput_rps=num_finished / span_s if span_s > 0 else math.inf if num_finished else 0.0,
        num_prompt_tokens=sum(record.num_prompt_tokens for record in records),
        num_computed=sum(record.num_computed for record in records),
        num_cached=sum(record.num_cached for record in records),
        num_invalidated=sum(record.num_invalidated for record in records),
        num_evicted=sum(record.num_evicted for record in records),
        num_evictions=sum(record.num_evictions for record in records),
        deadlocked=deadlocked,
    )


def between(records: Sequence[RequestRecord], trim_s: float) -> list[RequestRecord]:
    """The records but those that arrived in the first or the last ``trim_s`` seconds: what a summary's percentiles are over."""
    arrivals_s = [record.arrival_s for record in records]
    start_s, end_s = min(arrivals_s) + trim_s, max(arrivals_s) - trim_s
    return [record for record in records if start_s <= record.arrival_s <= end_s]


def percentiles(values: Iterable[float]) -> Percentiles:
    """The 50th, 95th and 99th percentile. Raises :class:`InvalidInputError` without values."""
    ordered = sorted(values)
    return Percentiles(*(percentile(ordered, percent) for percent in (50, 95, 99)))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least of ``ordered`` values (ascending) that at least ``percent`` of a hundred do not exceed: nearest rank."""
    if not ordered or not 0 < percent <= 100:
        raise InvalidInputError(
            f"percentile {percent} of {len(ordered)} values. Write one above 0, to 100, of one value or more."
        )
    return ordered[math.ceil(percent * len(ordered) / 100) - 1]


def _span_s(records: Sequence[RequestRecord]) -> float:
    """From the first arrival to the end of the last answer there was; 0 without one."""
    start_s = min(record.arrival_s for record in records)
    return max((record.finished_s for record in records if record.is_finished), default=start_s) - start_s
