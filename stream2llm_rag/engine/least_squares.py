"""A linear model of times, fitted at once or learned from one observation after another. Pure.

Errors count relative to the value, so that a step of a millisecond says as much as one of a second, and no coefficient goes
below zero, as each stands for a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]

_FAITH = 1e-6  # in the first coefficients, in observations: the least that keeps apart what observations do not
_SLACK = 1e-9  # of a slope that is none, for what floating point leaves
_LEAST = 1e-15  # seconds below this are none
_NUM_FREE = 16  # so many observations are taken as they come
_MAX_RATIO = 3.0  # of a later one to what was predicted: beyond it is a hiccup, or takes a few more to be believed


def fit_relative(rows: npt.ArrayLike, values: npt.ArrayLike) -> Vector:
    """The coefficients, none below 0, for which ``rows @ coefficients`` is least off from ``values``, relative to these.

    ``rows`` has shape (observations, coefficients), ``values`` are above 0. Weight that the rows do not tell apart is shared.
    """
    relative = np.asarray(rows, dtype=float) / np.asarray(values, dtype=float)[:, None]
    return _non_negative(relative.T @ relative, relative.sum(axis=0))


class RecursiveLeastSquares:
    """``coefficients``, none below 0, that predict a value as their product with its features, and follow what is observed.

    Directional forgetting (Kulhavy, Kybernetika 23, 1987): what is known halves within ``half_life`` observations only where
    these speak of it. What a long run of decode steps says nothing of stays known.
    """

    def __init__(self, coefficients: Sequence[float], half_life: float) -> None:
        first = np.array(coefficients, dtype=float)
        is_set = first > _LEAST
        self.coefficients: tuple[float, ...] = tuple(np.where(is_set, first, 0.0).tolist())
        self._forgotten = 1.0 - 0.5 ** (1.0 / half_life)
        self._num_observed = 0
        self._information = np.diag(np.where(is_set, _FAITH / np.where(is_set, first, 1.0) ** 2, 0.0))

    def predict(self, features: Sequence[float]) -> float:
        """The value that belongs to ``features``."""
        # Asked hundreds of times a step: for so few coefficients NumPy takes longer.
        return sum(one * other for one, other in zip(self.coefficients, features, strict=True))

    def assume(self, observations: Sequence[Sequence[float]], num_times: int) -> None:
        """Begin as if each of these features had been observed so often, with the value that is predicted for it."""
        rows = np.array(observations, dtype=float)
        values = rows @ self.coefficients
        if values.min() > _LEAST:
            relative = rows / values[:, None]
            self._information = self._information + num_times * (relative.T @ relative)
            self._num_observed += num_times * len(rows)

    def add(self, features: Sequence[float], value: float) -> None:
        """Learn that ``features`` had ``value``; one that is not finite and above 0 is none."""
        if not _LEAST < value < math.inf:
            return
        row, predicted = np.asarray(features, dtype=float), self.predict(features)
        if self._num_observed < _NUM_FREE or predicted <= _LEAST:
            self._learn(row / value, 1.0)
        else:
            before = np.array(self.coefficients)
            self._learn(row / predicted, min(max(value / predicted, 1 / _MAX_RATIO), _MAX_RATIO))
            self._rescale(before)
        self._num_observed += 1

    def _rescale(self, before: Vector) -> None:
        """Let what was learned hold relative to what is predicted now: a machine that slows down makes its past no surer.

        ``coefficients @ information @ coefficients`` is how many observations it is worth, and stays that. By the change of the
        latest prediction alone it would grow without bound where observations of two kinds pull the coefficients to and fro.
        """
        now = np.array(self.coefficients)
        was_worth, is_worth = before @ self._information @ before, now @ self._information @ now
        if is_worth > was_worth / 4:
            self._information = self._information * (was_worth / is_worth)
        else:
            self._information = self._information * 4

    def _learn(self, row: Vector, value: float) -> None:
        """The coefficients least off from what is known and from ``row @ coefficients == value``."""
        known = self._information - self._forgotten / _uncertainty(self._information, row) * np.outer(row, row)
        self._information = known + np.outer(row, row)
        sums = known @ self.coefficients + row * value
        support = [index for index, coefficient in enumerate(self.coefficients) if coefficient]
        self.coefficients = tuple(_non_negative(self._information, sums, support).tolist())


def _uncertainty(information: Vector, row: Vector) -> float:
    """``row @ inverse(information) @ row``: the variance of a prediction for ``row``. Infinite where nothing is known of it."""
    scale = np.sqrt(np.diag(information))
    is_known = scale > 0
    if row[~is_known].any():
        return math.inf
    unit, scale = row[is_known] / scale[is_known], scale[is_known]
    normal = information[np.ix_(is_known, is_known)] / np.outer(scale, scale)
    variance = float(unit @ _solved(normal, unit))
    return variance if variance > 0 else math.inf


def _non_negative(moments: Vector, sums: Vector, support: Sequence[int] = ()) -> Vector:
    """The x >= 0 that minimises ``x @ moments @ x - 2 sums @ x``, for a positive semidefinite matrix of few rows.

    Exact: it is known by its slope (Karush, Kuhn, Tucker) once the coefficients above zero are, and all choices of these are
    tried; ``support`` first, which as a rule is right.
    """
    diagonal = np.sqrt(np.diag(moments))
    scale = np.where(diagonal > 0, diagonal, 1.0)  # the parts of a step differ by ten powers of ten
    moments, sums = moments / np.outer(scale, scale), sums / scale
    slack = _SLACK * float(np.abs(sums).max())
    best, lowest = np.zeros(len(sums)), 0.0
    for kept in _supports(len(sums), support):
        found = np.zeros(len(sums))
        found[kept] = _solved(moments[np.ix_(kept, kept)], sums[kept])
        if found.min() < 0:
            continue
        if float((moments @ found - sums).min()) >= -slack:
            best = found
            break
        if (height := -float(sums @ found)) < lowest:
            best, lowest = found, height
    solution: Vector = best / scale
    return solution


def _supports(num_coefficients: int, first: Sequence[int]) -> Iterator[list[int]]:
    if len(first):
        yield list(first)
    for num_kept in range(num_coefficients, 0, -1):
        yield from map(list, combinations(range(num_coefficients), num_kept))


def _solved(moments: Vector, sums: Vector) -> npt.NDArray[Any]:
    """The least solution where the matrix is singular."""
    try:
        return np.linalg.solve(moments, sums)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(moments, sums, rcond=None)[0]
