"""What a measurement on this machine found, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stream2llm_rag.bench.beside import Beside
from stream2llm_rag.bench.ledger import Entry
from stream2llm_rag.bench.local import Measured
from stream2llm_rag.bench.machine import describe_machine
from stream2llm_rag.bench.replay import Round
from stream2llm_rag.simulation import report


def equal_answers(measured: Measured) -> tuple[int, int]:
    """How many answers of all other ways are those of the first, of how many that came both ways."""
    first, *others = measured.plan.settings.ways
    pairs = [
        (done.answers[query_id], answer)
        for other in others
        for usual, done in zip(measured.of(first), measured.of(other), strict=True)
        for query_id, answer in usual.answers.items()
    ]
    both = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
    return sum(mine == theirs for mine, theirs in both), len(both)


def to_json(measured: Measured, beside: Sequence[Beside]) -> dict[str, Any]:
    """All that was found, as plain values."""
    runs = [run for one in beside for run in (one.measured, one.simulated, one.informed)]
    machine = describe_machine()
    num_equal, num_compared = equal_answers(measured)
    return {
        "machine": machine,
        "scale": asdict(measured.scale),
        "calibration": asdict(measured.calibration),
        "rounds": [_round(index, done, machine) for index, done in measured.rounds],
        "slowdown": {one.way.name: one.slowdown for one in beside},
        "remarks": {one.way.name: one.remarks() for one in beside},
        "num_answers_equal": num_equal,
        "num_answers_compared": num_compared,
        **report.to_json(runs),
    }


def _round(index: int, done: Round, machine: dict[str, str]) -> dict[str, Any]:
    entry = Entry.of(index, done, machine)
    return {name: getattr(entry, name) for name in ("index", "way", "duration_s", "busy_s", "lateness_s", "stalled", "cut_off")}
