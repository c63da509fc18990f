"""Several rounds of one way as one run. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.records import Percentiles, RequestRecord, Summary, percentiles


def trimmed(records: Sequence[RequestRecord], trim_s: float) -> list[RequestRecord]:
    """Those of one round that did not arrive in its first or last ``trim_s`` seconds. Those may be none."""
    arrivals = [record.arrival_s for record in records]
    start_s, end_s = min(arrivals) + trim_s, max(arrivals) - trim_s
    return [record for record in records if start_s <= record.arrival_s <= end_s]


MIN_FOR_P99 = 1000
"""Requests that a P99 needs, to rest on more than a handful of them."""


def pool_rounds(
    rounds: Sequence[Sequence[RequestRecord]], *, trim_s: float = 0.0, stalled: bool = False, min_for_p99: int = MIN_FOR_P99
) -> Summary:
    """The figures over all ``rounds`` of one way, each trimmed for itself; as ``summarise`` gives them for one run.

    The seconds of the rounds add up. With fewer than ``min_for_p99`` requests left the P99 are not a number. Raises
    :class:`InvalidInputError` where none is left.
    """
    measured = [record for records in rounds for record in trimmed(records, trim_s)]
    if not measured:
        raise InvalidInputError(f"trim_s is {trim_s}, which leaves nothing of any round. Write less.")
    records = [record for one in rounds for record in one]
    finished = [record for record in records if record.is_finished]
    spans_s = [_span_s(one) for one in rounds]
    return Summary(
        num_requests=len(records),
        num_measured=len(measured),
        num_unfinished=len(records) - len(finished),
        ttft_s=_percentiles([record.ttft_s for record in measured], min_for_p99),
        arrival_to_first_token_s=_percentiles([record.arrival_to_first_token_s for record in measured], min_for_p99),
        completion_s=sum(spans_s) if len(finished) == len(records) else math.inf,
        throughput_rps=len(finished) / sum(spans_s) if finished else 0.0,
        num_prompt_tokens=sum(record.num_prompt_tokens for record in records),
        num_computed=sum(record.num_computed for record in records),
        num_cached=sum(record.num_cached for record in records),
        num_invalidated=sum(record.num_invalidated for record in records),
        num_evicted=sum(record.num_evicted for record in records),
        num_evictions=sum(record.num_evictions for record in records),
        deadlocked=stalled,
    )


def _percentiles(values: Sequence[float], min_for_p99: int) -> Percentiles:
    found = percentiles(values)
    return found if len(values) >= min_for_p99 else replace(found, p99=math.nan)


def _span_s(records: Sequence[RequestRecord]) -> float:
    """From the first arrival to the end of the last answer there was; 0 without one."""
    start_s = min(record.arrival_s for record in records)
    return max((record.finished_s for record in records if record.is_finished), default=start_s) - start_s
