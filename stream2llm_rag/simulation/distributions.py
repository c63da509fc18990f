"""Distributions given by their quantiles. Pure.

Values come from ``Random.random()`` alone, by inversion: it is the one method whose sequence Python promises for a seed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from random import Random
from statistics import NormalDist

_STANDARD_NORMAL = NormalDist()
_LEAST = 2.0**-54  # half of what random() can differ by, so that 0 has a logarithm too


class Quantiles:
    """A positive quantity by its quantiles, interpolated linearly in its logarithm.

    ``values`` gives the value at each probability; 0 and 1, the least and the greatest value, must be among them.
    """

    def __init__(self, values: Mapping[float, float]) -> None:
        self._probabilities = sorted(values)
        self._logarithms = [math.log(values[probability]) for probability in self._probabilities]
        assert self._probabilities[0] == 0
        assert self._probabilities[-1] == 1
        assert self._logarithms == sorted(self._logarithms)

    def at(self, probability: float) -> float:
        """The value that a share of ``probability``, from 0 to 1, does not exceed."""
        above = min(bisect_right(self._probabilities, probability), len(self._probabilities) - 1)
        low, high = self._probabilities[above - 1], self._probabilities[above]
        share = (probability - low) / (high - low)
        return math.exp((1 - share) * self._logarithms[above - 1] + share * self._logarithms[above])

    def draw(self, random: Random) -> float:
        """One value."""
        return self.at(random.random())


def normal(random: Random, mean: float, deviation: float) -> float:
    """One value of a normal distribution."""
    return mean + deviation * _STANDARD_NORMAL.inv_cdf(max(random.random(), _LEAST))


def lognormal(random: Random, median: float, sigma: float) -> float:
    """One value whose logarithm is normal; ``sigma`` is the deviation of the logarithm."""
    return median * math.exp(normal(random, 0.0, sigma))


def exponential(random: Random, mean: float = 1.0) -> float:
    """One waiting time of a Poisson process."""
    return -mean * math.log(max(1 - random.random(), _LEAST))


def share_kept(random: Random, bias: float) -> float:
    """One value of the distribution Beta(1, ``bias``), of mean 1 / (1 + bias): of a list, the share before the first change."""
    return 1.0 - float((1.0 - random.random()) ** (1.0 / bias))


def arrivals(random: Random, rate: float) -> Iterator[float]:
    """Seconds at which the events of a Poisson process come, ``rate`` a second in the mean, without end."""
    now_s = 0.0
    while True:
        now_s += exponential(random) / rate
        yield now_s


def split(random: Random, total: int, num_parts: int) -> list[int]:
    """``total`` in parts of at least 1 (so ``total`` >= ``num_parts``), all ways to cut it being equally likely."""
    weights = [exponential(random) for _ in range(num_parts)]
    spare, scale = total - num_parts, math.fsum(weights)
    ends = [round(spare * math.fsum(weights[: number + 1]) / scale) for number in range(num_parts)]
    return [1 + end - start for start, end in zip([0, *ends], ends, strict=False)]
