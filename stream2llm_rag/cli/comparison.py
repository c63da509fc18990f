"""Runs on the terminal and in files: what simulations and benchmarks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from stream2llm_rag.cli.options import write, write_json
from stream2llm_rag.simulation import plots, report
from stream2llm_rag.simulation.records import Percentiles
from stream2llm_rag.simulation.report import Interval, Row, number
from stream2llm_rag.simulation.runs import Run
from stream2llm_rag.timeline.measures import count

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 128  # where no terminal says how wide it is


def show(out: Console, rows: Sequence[Row], default: str) -> None:
    """Two tables for each cell: when first tokens came, and what that took. P50, P95 and P99 stand together."""
    if not out.is_terminal:
        out.width = max(out.width, _WIDTH)
    for cell, in_cell in groupby(rows, key=lambda row: row.cell):
        found = list(in_cell)
        seeds = f"{found[0].num_seeds} {'seed' if found[0].num_seeds == 1 else 'seeds'}"
        out.print()
        out.print(Text(f"{cell}; {seeds}, {found[0].num_measured:,} requests measured", "bold"))
        out.print(_times(found, default))
        out.print()
        out.print(_work(found))


def store(runs: Sequence[Run], default: str, json_file: Path | None, csv_file: Path | None, pictures: Path | None) -> None:
    """Write the files that are asked for."""
    if json_file is not None:
        write_json(json_file, report.to_json(runs, default))
    if csv_file is not None:
        write(csv_file, report.to_csv(runs))
    if pictures is not None:
        plots.draw_all(runs, pictures)


def _times(rows: Sequence[Row], default: str) -> Table:
    table = _table("Front end", "TTFT s", "times sooner than NS", f"P50 / {default}'s", f"P99 / {default}'s")
    for row in rows:
        deadlocks = f" (deadlock in {row.num_deadlocked} of {row.num_seeds})" if row.num_deadlocked else ""
        table.add_row(
            Text(row.frontend + deadlocks, "bold" if row.frontend == default else ""),
            _parts(row.ttft_s),
            "" if row.speedup is None else _parts(row.speedup),
            _interval(row.to_default.get("p50")),
            _interval(row.to_default.get("p99")),
        )
    return table


def _work(rows: Sequence[Row]) -> Table:
    heads = (
        "question to token s",
        "requests/s",
        "completed s",
        "evictions",
        "computed",
        "/ prompts",
        "invalidated",
        "unanswered",
    )
    table = _table("Front end", *heads)
    for row in rows:
        table.add_row(
            row.frontend,
            _parts(row.arrival_to_first_token_s),
            f"{row.throughput_rps:.3f}",
            number(row.completion_s),
            count(round(row.num_evictions)),
            count(round(row.num_computed)),
            f"{row.num_computed / row.num_prompt_tokens:.3f}",
            count(round(row.num_invalidated)),
            count(row.num_unfinished),
        )
    return table


def _table(*heads: str) -> Table:
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _parts(values: Percentiles) -> str:
    return "/".join(map(number, (values.p50, values.p95, values.p99)))


def _interval(value: Interval | None) -> str:
    """The mean and its interval, with a star where that excludes 1."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return number(value.mean) if value.mean > 0 else "never"
    ends = f"[{number(value.low)}, {number(value.high)}]"
    return f"{number(value.mean)} {ends}{'*' if value.is_apart else ' '}"
