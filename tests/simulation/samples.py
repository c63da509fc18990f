"""Runs to report on, made of records with the TTFTs that a test wants."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stream2llm_rag.simulation.records import RequestRecord, summarise
from stream2llm_rag.simulation.runs import Run


def records(ttfts_s: Sequence[float], num_invalidated: int = 0) -> list[RequestRecord]:
    return [
        RequestRecord(
            f"q{number}",
            arrival_s=float(number),
            final_s=number + 2.0,
            num_prompt_tokens=1000,
            first_token_s=number + 2.0 + ttft_s,
            finished_s=number + 2.0 + ttft_s,
            num_output_tokens=1,
            num_computed=1000 + num_invalidated,
            num_invalidated=number * num_invalidated,
        )
        for number, ttft_s in enumerate(ttfts_s)
    ]


def sample_run(
    frontend: str,
    ttfts_s: Sequence[float],
    *,
    seed: int = 0,
    series: str = "crawler, pool 1",
    qps: float | None = 4.0,
    num_invalidated: int = 0,
) -> Run:
    found = records(ttfts_s, num_invalidated)
    deadlocked = any(math.isinf(ttft_s) for ttft_s in ttfts_s)
    return Run.of(series, qps, frontend, seed, found, summarise(found, deadlocked=deadlocked))
