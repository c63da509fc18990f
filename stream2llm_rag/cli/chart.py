"""Curves of times on the terminal, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

_GUTTER = 10
_LEAST, _MAX_RANGE = 1e-9, 1e6


@dataclass(frozen=True, slots=True)
class Curve:
    """``at`` gives the height above each place on the axis; ``mark`` draws it, in the colour ``style``."""

    name: str
    mark: str
    style: str
    at: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Chart:
    """``curves`` between ``low`` and ``high`` on the horizontal axis, with a line down from ``line_at`` where there is one.

    ``label`` words a height, in at most 8 characters; places are whole numbers.
    """

    curves: Sequence[Curve]
    low: float
    high: float
    label: Callable[[float], str]
    line_at: float | None = None
    num_columns: int = 64
    num_rows: int = 16

    def lines(self) -> Iterator[Text]:
        """From top to bottom; of two curves at one place the first is shown."""
        cells = self._cells()
        heights = self._heights()
        for row in reversed(range(self.num_rows)):
            is_labelled = row % 5 == 0 or row == self.num_rows - 1
            line = Text(f"{self.label(self._height(heights, row)) if is_labelled else '':>{_GUTTER - 2}} │")
            for column in range(self.num_columns):
                line.append(*cells.get((column, row), (" ", "")))
            yield line
        yield Text(" " * (_GUTTER - 1) + "└" + "─" * self.num_columns)
        yield Text(self._ticks())
        yield Text.assemble(" " * _GUTTER, *((f"{curve.mark} {curve.name}   ", curve.style) for curve in self.curves))

    def _cells(self) -> dict[tuple[int, int], tuple[str, str]]:
        low, high = self._heights()
        cells: dict[tuple[int, int], tuple[str, str]] = {}
        if self.line_at is not None and self.low <= self.line_at <= self.high:
            column = self._column(self.line_at)
            cells = {(column, row): ("┊", "dim") for row in range(self.num_rows)}
        for curve in reversed(self.curves):
            for column in range(self.num_columns):
                share = math.log(max(curve.at(self._place(column)), low) / low) / math.log(high / low)
                cells[column, round(share * (self.num_rows - 1))] = (curve.mark, curve.style)
        return cells

    def _heights(self) -> tuple[float, float]:
        """The lowest and the highest that is drawn."""
        found = [curve.at(self._place(column)) for curve in self.curves for column in range(self.num_columns)]
        highest = max(*found, _LEAST)
        return max(min(found), highest / _MAX_RANGE), highest * 1.01

    def _height(self, heights: tuple[float, float], row: int) -> float:
        low, high = heights
        return low * math.pow(high / low, row / (self.num_rows - 1))

    def _place(self, column: int) -> float:
        return self.low * math.pow(self.high / self.low, column / (self.num_columns - 1))

    def _column(self, place: float) -> int:
        return round(math.log(place / self.low) / math.log(self.high / self.low) * (self.num_columns - 1))

    def _ticks(self) -> str:
        """The powers of two that the axis has room for."""
        line = ""
        for exponent in range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1):
            start = _GUTTER + self._column(2**exponent)
            if start >= len(line) + 2:
                line = f"{line:<{start}}{2**exponent:,}"
        return line


def duration(seconds: float) -> str:
    """Three digits and a unit that suits them."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
