"""What a policy can learn from the requests that it has seen: pure, bounded, and forgetting."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable
from itertools import accumulate

NUM_KEPT = 192
NUM_BINS = 16


class _Residuals:
    """The last :data:`NUM_KEPT` residual times of one kind, sorted when asked for."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=NUM_KEPT)
        self._sorted: list[float] = []
        self._tails: list[float] = []

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, residual_s: float) -> None:
        self._seen.append(residual_s)
        self._sorted = []

    def mean_beyond(self, elapsed_s: float) -> float:
        """Mean of what is left of those longer than ``elapsed_s``, and two medians as pseudo-samples: never 0."""
        if not self._sorted:
            self._sorted = sorted(self._seen)
            self._tails = [*accumulate(reversed(self._sorted), initial=0.0)][::-1]
        first = bisect_right(self._sorted, elapsed_s)
        num_left = len(self._sorted) - first
        median = self._sorted[len(self._sorted) // 2]
        return (self._tails[first] - num_left * elapsed_s + 2 * median) / (num_left + 2)


class StreamingTimes:
    """How much longer a request will stream, learned by a key: how many pieces it has had, or how many it still expects."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Residuals] = {}

    def add(self, key: Hashable, residual_s: float) -> None:
        """Learn that a request of kind ``key`` got its final context ``residual_s`` seconds later."""
        self._kinds.setdefault(key, _Residuals()).add(residual_s)

    def num_seen(self, key: Hashable) -> int:
        """How many of that kind it remembers."""
        return len(self._kinds.get(key, ()))

    def expected_s(self, key: Hashable, elapsed_s: float) -> float:
        """Expected seconds until the final context of a request that became of kind ``key`` (seen before) so long ago."""
        return self._kinds[key].mean_beyond(elapsed_s)


class Survival:
    """How probably an update leaves a position of the prompt as it is: a decaying histogram of the shares that updates kept."""

    def __init__(self, decay: float = 0.995) -> None:
        self._decay = decay
        self._weights = [1.0] * NUM_BINS  # uniform at first: a position survives with one minus its share of the prompt
        self._curve: list[float] = []
        self._fit()

    def add(self, kept_share: float) -> None:
        """Learn that an update kept the first ``kept_share`` of a prompt."""
        self._weights = [weight * self._decay for weight in self._weights]
        self._weights[min(NUM_BINS - 1, int(kept_share * NUM_BINS))] += 0.1
        self._fit()

    def at(self, share: float) -> float:
        """Probability that the next update leaves the first ``share`` of a prompt in place."""
        place = min(max(share, 0.0), 1.0) * NUM_BINS
        index = min(NUM_BINS - 1, int(place))
        return self._curve[index] + (self._curve[index + 1] - self._curve[index]) * (place - index)

    def _fit(self) -> None:
        total = sum(self._weights)
        self._curve = [1.0 - below / total for below in accumulate(self._weights, initial=0.0)]


class TokenTime:
    """Seconds that a token of prefill takes, from the steps seen; small steps say more of the step than of the token."""

    def __init__(self, guess_s: float, decay: float = 0.98, min_tokens: int = 64) -> None:
        self._decay = decay
        self._min_tokens = min_tokens
        self._num_tokens = float(min_tokens)
        self._duration_s = guess_s * min_tokens

    def add(self, num_tokens: int, duration_s: float) -> None:
        """Learn that a step of ``num_tokens`` took ``duration_s``."""
        if num_tokens >= self._min_tokens and duration_s > 0:
            self._num_tokens = self._num_tokens * self._decay + num_tokens
            self._duration_s = self._duration_s * self._decay + duration_s

    @property
    def seconds(self) -> float:
        """Seconds a token."""
        return self._duration_s / self._num_tokens
