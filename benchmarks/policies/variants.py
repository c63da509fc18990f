"""The default policy with one part taken away, put differently, or made perfect: what each part is worth."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.engine.policy.base import LiveRequest, Rank
from stream2llm_rag.engine.policy.density import UNKNOWN_S, Density
from stream2llm_rag.engine.policy.learning import NUM_KEPT, StreamingTimes
from stream2llm_rag.simulation.grid import TOKEN_BUDGETS, Generated, Machine, Setting

SEEDS = range(3)
_LOAD = Generated("crawler", 4, 10)


class NoMargin(Density):
    """A partial request takes the blocks of whatever is worth less than its own."""

    rules = replace(Density.rules, displaces=1.0)


class NoReserve(Density):
    """Partial requests fill the pool."""

    rules = replace(Density.rules, reserved_share=0.0)


class WholeStep(Density):
    """Partial requests may fill a step."""

    rules = replace(Density.rules, partial_budget=None)


class Beside(Density):
    """Partial requests run beside complete ones that have prefill to do."""

    rules = replace(Density.rules, partials_wait=False)


class WholeVictims(Density):
    """Victims lose all their KV."""

    rules = replace(Density.rules, evicts_tails=False)


class FirstComplete(Density):
    """Complete requests in the order in which they became so."""

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """By the time of the final context."""
        return super().rank(request, now) if request.partial else (0.0, request.last_chunk_at)


class Unlearned(Density):
    """Whoever has streamed for longest is expected to be done first."""

    def _expected_s(self, request: LiveRequest, now: float) -> float:
        return UNKNOWN_S / (1.0 + now - request.arrived_at)


class LongerFirst(Density):
    """What long prompts hold is worth more, by the square root of their length: for the latest one percent."""

    def _value(self, request: LiveRequest, now: float) -> tuple[float, float]:
        value, until = super()._value(request, now)
        return value * math.sqrt(request.num_target + 1), until


class _Indices(StreamingTimes):
    """Seconds held for each use, if one holds for just as long as pays best: the Gittins index of a retirement problem."""

    def __init__(self, least_share: float = 0.25) -> None:
        super().__init__()
        self._least_share = least_share
        self._seen: dict[object, list[float]] = {}

    def add(self, key: object, residual_s: float) -> None:
        """Learn it."""
        super().add(key, residual_s)
        self._seen[key] = [*self._seen.get(key, ()), residual_s][-NUM_KEPT:]

    def expected_s(self, key: object, elapsed_s: float) -> float:
        """The least over all horizons of the seconds held up to it, by the uses that come before it."""
        ordered = sorted(self._seen[key])
        median = ordered[len(ordered) // 2]
        left = sorted([*(value - elapsed_s for value in ordered[bisect_right(ordered, elapsed_s) :]), median, median])
        held = (
            (below + (len(left) - number) * value) / number
            for number, (below, value) in enumerate(zip(accumulate(left), left, strict=True), start=1)
            if number >= self._least_share * len(left)
        )
        return min(held)


class Gittins(Density):
    """Blocks are held as long as that pays best, not until the use that is expected."""

    def __init__(self) -> None:
        super().__init__()
        self._times = _Indices()


class Oracle(Density):
    """The time of each final context is known beforehand: perfect prediction."""

    def _expected_s(self, request: LiveRequest, now: float) -> float:
        return _finals_s()[request.request_id] - now


@cache
def _finals_s() -> dict[str, float]:
    """When each request of these loads gets its final context."""
    traces = (_LOAD.trace(seed) for seed in SEEDS)
    return {query.query_id: query.final_s for trace in traces for query in trace}


@dataclass(frozen=True, slots=True)
class Ablation:
    """The variants on one pool, at the paper's crawls of 4 QPS and delay x10."""

    pool: float

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"variants-pool{self.pool:g}"

    def settings(self) -> list[Setting]:
        """Its runs, seed by seed."""
        machine = Machine(pool=self.pool, token_budget=TOKEN_BUDGETS["crawler"])
        frontends = (DEFAULT_POLICY, *(f"{variant.__module__}:{variant.__name__}" for variant in VARIANTS))
        return [Setting(_LOAD, machine, frontend, seed) for seed in SEEDS for frontend in frontends]


VARIANTS: tuple[type[Density], ...] = (
    WholeVictims,
    NoMargin,
    NoReserve,
    WholeStep,
    Beside,
    FirstComplete,
    Unlearned,
    Gittins,
    LongerFirst,
    Oracle,
)
ABLATIONS = (Ablation(0.35), Ablation(0.15))
