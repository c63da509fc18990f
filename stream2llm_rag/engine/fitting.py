"""Costs fitted to measurements, how far off they are, and from which length on a copy pays. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from stream2llm_rag.engine.cost_model import CostModel, Direction
from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost, step_features
from stream2llm_rag.engine.least_squares import fit_relative
from stream2llm_rag.errors import InvalidInputError

MIN_STEPS, MIN_COPIES = 16, 6
_OUTLIER = 3.0  # measurements so many times off a first fit are hiccups of the machine, and left out of the second


@dataclass(frozen=True, slots=True)
class StepTiming:
    """A step that computed ``num_tokens`` of one request behind ``context`` others."""

    num_tokens: int
    context: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CopyTiming:
    """A copy of ``num_blocks`` in one operation."""

    direction: Direction
    num_blocks: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Timings:
    """What was measured."""

    steps: Sequence[StepTiming]
    copies: Sequence[CopyTiming]

    def of(self, direction: Direction) -> list[CopyTiming]:
        """The copies one way."""
        return [copy for copy in self.copies if copy.direction is direction]


@dataclass(frozen=True, slots=True)
class Error:
    """The relative error of ``num_measurements`` predictions: the median, and the 95th percentile."""

    num_measurements: int
    median: float
    p95: float


def fit_costs(timings: Timings) -> Costs:
    """The costs that are least off, relative to what was measured.

    Raises :class:`InvalidInputError` for fewer than 16 steps, or 6 copies in either direction, or times that are not above 0.
    """
    steps = [(step_features([(step.num_tokens, step.context)]), step.seconds) for step in timings.steps]
    out, back = (
        [((1.0, float(copy.num_blocks)), copy.seconds) for copy in timings.of(direction)]
        for direction in (Direction.OUT, Direction.IN)
    )
    return Costs(
        StepCost(*_fitted("steps", steps, MIN_STEPS)),
        CopyCost(*_fitted("copies out", out, MIN_COPIES)),
        CopyCost(*_fitted("copies in", back, MIN_COPIES)),
    )


def errors_of(costs: Costs, timings: Timings) -> dict[str, Error]:
    """How far ``costs`` are off from ``timings``, by what was measured."""
    steps = [(costs.step([(step.num_tokens, step.context)]), step.seconds) for step in timings.steps]
    out = [(costs.swap_out(copy.num_blocks), copy.seconds) for copy in timings.of(Direction.OUT)]
    back = [(costs.swap_in(copy.num_blocks), copy.seconds) for copy in timings.of(Direction.IN)]
    return {name: _error(pairs) for name, pairs in (("step", steps), ("swap_out", out), ("swap_in", back))}


def crossover(model: CostModel, max_tokens: int, context: int = 0) -> int | None:
    """The fewest tokens, up to ``max_tokens``, for which the model copies a victim's KV; None where it never does.

    From there on it does, as computing again grows faster with the length than copying; but for a few tokens in a last block,
    which is copied whole.
    """
    return _first(lambda num_tokens: model.for_victim(num_tokens, context).swap, max_tokens)


def _first(holds: Callable[[int], bool], highest: int) -> int | None:
    """The least number from 1 to ``highest`` from which on ``holds``."""
    if highest < 1 or not holds(highest):
        return None
    low, high = 0, highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _fitted(name: str, measured: Sequence[tuple[tuple[float, ...], float]], least: int) -> list[float]:
    if len(measured) < least:
        raise InvalidInputError(f"{len(measured)} {name} were measured. Measure {least} or more.")
    if wrong := [seconds for _, seconds in measured if not 0 < seconds < math.inf]:
        raise InvalidInputError(f"one of the {name} took {wrong[0]!r} seconds. Measure seconds above 0.")
    first = fit_relative(*zip(*measured, strict=True))
    kept = [(row, seconds) for row, seconds in measured if 1 / _OUTLIER < float(first @ row) / seconds < _OUTLIER]
    found = fit_relative(*zip(*kept, strict=True)) if len(kept) >= least else first
    return [float(coefficient) for coefficient in found]


def _error(pairs: Sequence[tuple[float, float]]) -> Error:
    errors = sorted(abs(predicted / seconds - 1) for predicted, seconds in pairs)
    return Error(len(errors), median(errors), errors[math.ceil(0.95 * len(errors)) - 1])


def medians(errors: Mapping[str, Error]) -> dict[str, float]:
    """What a stored fit keeps of its errors."""
    return {name: error.median for name, error in errors.items()}
