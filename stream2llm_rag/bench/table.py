"""Tables of results as plain text, for where there is no terminal to draw on. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from stream2llm_rag.simulation.records import Percentiles
from stream2llm_rag.simulation.report import Row

HEADINGS = (
    "way",
    "requests",
    "TTFT P50/P95/P99, s",
    "arrival to first token, s",
    "NS / this, P50/P95/P99",
    "answers/s",
    "evictions",
    "computed / prompt",
    "invalidated",
    "unanswered",
    "",
)


def text_table(rows: Sequence[Row]) -> str:
    """``rows`` of one cell. A dash is a figure that there is not: a P99 of too few requests, a ratio without a baseline."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.frontend,
        str(row.num_measured),
        _three(row.ttft_s),
        _three(row.arrival_to_first_token_s),
        _speedup(row),
        figure(row.throughput_rps),
        f"{row.num_evictions:.0f}",
        figure(row.num_computed / row.num_prompt_tokens),
        f"{row.num_invalidated:.0f}",
        str(row.num_unfinished),
        "stalled" if row.num_deadlocked else "",
    )


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return "-"
    return _three(row.speedup if not math.isnan(row.ttft_s.p99) else replace(row.speedup, p99=math.nan))


def _three(values: Percentiles) -> str:
    return " ".join(figure(value) for value in (values.p50, values.p95, values.p99))


def figure(value: float) -> str:
    """Three digits that count; ``inf`` for what never came, and a dash for what is not known."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}"
