"""Fit the thresholds of the stability gate to an index: how early can documents be shown, and still stay? Pure but for its
file.

Each query is searched once and every snapshot kept. A pair of thresholds is judged by two figures: of the documents that it
shows, the share that is in the final list (its precision), and how much of the final list it shows at how many of the reads
(its earliness). The most early one of those with the wanted precision is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from stream2llm_rag.errors import IndexBuildError, IndexFormatError
from stream2llm_rag.retrievers.diskann.search import SearchParameters
from stream2llm_rag.retrievers.diskann.stability import Gate, Snapshot, Thresholds

FILE_NAME = "calibration.json"
FORMAT_VERSION = 1
DEFAULT_PRECISION = 0.97
MIN_QUERIES = 20

_SLACKS = (0.0, 0.5, 1.0, 2.0, 4.0)
_AGES = (0, 1, 3, 8)
_PROGRESSES = (0.05, 0.15, 0.25, 0.4)
GRID = tuple(Thresholds(*values) for values in product(_SLACKS, _AGES, _PROGRESSES))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What thresholds came to over some searches: ``precision`` and ``earliness`` as above, from 0 to 1.

    ``shown_at_half`` is the share of the final list that is shown by half of the reads.
    """

    precision: float
    earliness: float
    shown_at_half: float


@dataclass(frozen=True, slots=True)
class Row:
    """Thresholds that were fitted for some parameters of the search, and what they came to over ``num_queries`` others."""

    top_k: int
    complexity: int
    beam_width: int
    thresholds: Thresholds
    judgement: Judgement
    num_queries: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """The table of an index: at most one row for each set of parameters."""

    rows: tuple[Row, ...] = ()

    def thresholds_for(self, parameters: SearchParameters) -> Thresholds:
        """Those of the row with the same ``top_k`` and ``beam_width`` and the nearest ``complexity``; without one the
        defaults.
        """
        wanted = (parameters.top_k, parameters.beam_width)
        rows = [row for row in self.rows if (row.top_k, row.beam_width) == wanted]
        if not rows:
            return Thresholds()
        return min(rows, key=lambda row: abs(math.log(row.complexity / parameters.complexity))).thresholds

    def with_rows(self, rows: Sequence[Row]) -> Calibration:
        """The table with ``rows`` in the place of those for the same parameters."""
        merged = {(row.top_k, row.complexity, row.beam_width): row for row in (*self.rows, *rows)}
        return Calibration(tuple(merged[key] for key in sorted(merged)))

    def write(self, path: Path) -> None:
        """Write the table; whoever reads meanwhile gets the old one or the new one. IndexBuildError where that cannot be."""
        temporary = path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps({"version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n", "utf-8")
            temporary.replace(path)
        except OSError as error:
            raise IndexBuildError(
                f"{path} cannot be written: {error.strerror or error}. The index that was calibrated uses the new thresholds "
                "until it is closed; to keep them, calibrate it in a folder that can be written to."
            ) from error

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """The table in ``path``, an empty one where there is none. IndexFormatError for anything else."""
        if not path.exists():
            return cls()
        try:
            stored = json.loads(path.read_text("utf-8"))
            if stored["version"] != FORMAT_VERSION:
                raise ValueError(f"version {stored['version']!r}, but {FORMAT_VERSION} is known")
            return cls(tuple(map(_row, stored["rows"])))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise IndexFormatError(f"{path}: it is no calibration: {error!r}. Delete it, and calibrate again.") from error


def judge(traces: Sequence[Sequence[Snapshot]], thresholds: Thresholds) -> Judgement:
    """What ``thresholds`` come to over searches, each as all its snapshots; at least one is needed."""
    precisions, earlinesses, halves = zip(*(_judge_one(trace, thresholds) for trace in traces), strict=True)
    shown = [precision for precision in precisions if precision is not None]
    return Judgement(sum(shown) / len(shown) if shown else 1.0, sum(earlinesses) / len(traces), sum(halves) / len(traces))


def fit_row(parameters: SearchParameters, traces: Sequence[Sequence[Snapshot]], precision: float) -> Row:
    """Fit to every other of ``traces``, and judge by the rest."""
    thresholds = fit(traces[::2], precision)
    judgement = judge(traces[1::2], thresholds)
    return Row(
        parameters.top_k, parameters.complexity, parameters.beam_width, thresholds, judgement, num_queries=len(traces[1::2])
    )


def fit(traces: Sequence[Sequence[Snapshot]], precision: float) -> Thresholds:
    """The thresholds of the grid that show most, earliest, with at least that precision; the most careful where none has it."""
    judged = [(judge(traces, thresholds), thresholds) for thresholds in GRID]
    good = [(judgement.earliness, thresholds) for judgement, thresholds in judged if judgement.precision >= precision]
    if not good:
        return max(judged, key=lambda pair: pair[0].precision)[1]
    return max(good, key=lambda pair: pair[0])[1]


def _judge_one(trace: Sequence[Snapshot], thresholds: Thresholds) -> tuple[float | None, float, float]:
    gate = Gate(thresholds)
    final = set(trace[-1].ids)
    num_reads = trace[-1].num_reads
    ever: set[int] = set()
    shown: set[int] = set()
    earliness = at_half = 0.0
    last_read = 0
    for snapshot in trace[:-1]:
        earliness += len(shown & final) * (snapshot.num_reads - last_read)
        last_read = snapshot.num_reads
        shown = set(gate.pass_on(snapshot) or shown)
        ever |= shown
        if snapshot.num_reads <= num_reads / 2:
            at_half = len(shown & final) / len(final)
    earliness += len(shown & final) * (num_reads - last_read)
    return (len(ever & final) / len(ever) if ever else None), earliness / (num_reads * len(final)), at_half


def _row(stored: dict[str, object]) -> Row:
    row = Row(**{**stored, "thresholds": _checked(Thresholds, stored), "judgement": _checked(Judgement, stored)})  # type: ignore[arg-type]
    if not all(type(number) is int and number > 0 for number in (row.top_k, row.complexity, row.beam_width, row.num_queries)):
        raise ValueError(f"a row of {stored}")
    return row


def _checked(kind: type[Thresholds] | type[Judgement], stored: dict[str, object]) -> Thresholds | Judgement:
    value = kind(**stored[kind.__name__.lower()])  # type: ignore[arg-type]
    numbers = asdict(value).values()
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{kind.__name__} of {list(numbers)}")
    return value
