"""Several rounds of one way as one run. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from stream2llm_rag.simulation.records import RequestRecord, Summary, summarise_rounds

MIN_FOR_P99 = 1000
"""Requests that a P99 needs, to rest on more than a handful of them."""


def pool_rounds(
    rounds: Sequence[Sequence[RequestRecord]], *, trim_s: float = 0.0, stalled: bool = False, min_for_p99: int = MIN_FOR_P99
) -> Summary:
    """The figures over all ``rounds`` of one way, each trimmed for itself.

    With fewer than ``min_for_p99`` requests left the P99 are not a number. Raises :class:`InvalidInputError` with none left.
    """
    found = summarise_rounds(rounds, trim_s=trim_s, deadlocked=stalled)
    if found.num_measured >= min_for_p99:
        return found
    unsure = {name: replace(getattr(found, name), p99=math.nan) for name in ("ttft_s", "arrival_to_first_token_s")}
    return replace(found, **unsure)
