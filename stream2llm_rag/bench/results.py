"""From rounds on disk to the rows of a report. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from stream2llm_rag.bench.cells import Cell
from stream2llm_rag.bench.ledger import Entry
from stream2llm_rag.bench.pooling import pool_rounds
from stream2llm_rag.simulation.report import to_json
from stream2llm_rag.simulation.runs import Run


def to_runs(cell: Cell, entries: Sequence[Entry]) -> list[Run]:
    """A run for each way: all its rounds together."""
    return [_run(cell, name, entries) for name in dict.fromkeys(entry.way for entry in entries)]


def _run(cell: Cell, name: str, entries: Sequence[Entry]) -> Run:
    own = [entry for entry in entries if entry.way == name]
    rounds = [entry.records for entry in own]
    summary = pool_rounds(rounds, trim_s=cell.trim_s, stalled=any(entry.stalled for entry in own))
    return Run.of(cell.name, None, name, 0, [record for records in rounds for record in records], summary)


def all_results(measured: Iterable[tuple[Cell, Sequence[Entry]]]) -> dict[str, Any]:
    """Plain values for JSON: the rows and runs of a report, the cells, and the machines that they were measured on."""
    pairs = [(cell, entries) for cell, entries in measured if entries]
    machines = sorted({json.dumps(dict(entry.machine), sort_keys=True) for _, entries in pairs for entry in entries})
    return {
        "machines": [json.loads(machine) for machine in machines],
        "cells": [_cell(cell, entries) for cell, entries in pairs],
        **to_json([run for cell, entries in pairs for run in to_runs(cell, entries)]),
    }


def _cell(cell: Cell, entries: Sequence[Entry]) -> dict[str, Any]:
    """The setting, and how its rounds went."""
    rounds = [
        {name: getattr(entry, name) for name in ("index", "way", "duration_s", "busy_s", "lateness_s", "stalled", "cut_off")}
        for entry in entries
    ]
    return {**asdict(cell), "rounds": rounds}
