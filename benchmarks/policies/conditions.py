"""Loads that the paper does not have: decoding, two kinds of retrieval at once, plain requests beside, a change of pace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from stream2llm_rag.simulation.distributions import arrivals, lognormal
from stream2llm_rag.simulation.grid import Machine, Recorded, Setting
from stream2llm_rag.simulation.trace import Chunk, Query, Trace
from stream2llm_rag.simulation.workloads import anns, crawler

FRONTENDS = ("ns", "fifo", "fcfs", "lcas", "mcps", "density", "density+hints")
SEEDS = range(3)
POOLS = (1.0, 0.35)
_NUM_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Condition:
    """A load, made from a seed, on a pool."""

    key: str
    label: str
    make: Callable[[int], Trace]
    pool: float

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.key}-pool{self.pool:g}"

    def settings(self) -> list[Setting]:
        """Its runs, seed by seed."""
        machine = Machine(pool=self.pool)
        return [
            Setting(load, machine, frontend, seed)
            for seed in SEEDS
            for load in [Recorded(self.label, self.make(seed))]
            for frontend in FRONTENDS
        ]


def _decoding(seed: int) -> Trace:
    return crawler(_NUM_REQUESTS, 4, 10, seed, num_output_tokens=128)


def _mixed(seed: int) -> Trace:
    """Two crawls for each search."""
    return _merge(crawler(_NUM_REQUESTS * 2 // 3, 2, 10, seed), anns(_NUM_REQUESTS // 3, 1, 30, seed))


def _beside_plain(seed: int) -> Trace:
    """Three crawls for every two prompts that come whole, of 1,500 tokens in the median."""
    random = Random(f"plain/{seed}")
    plain = (
        Query(f"plain-{seed}-{number}", arrival_s, (Chunk(0.0, max(16, round(lognormal(random, 1500, 0.8)))),))
        for number, arrival_s in zip(range(_NUM_REQUESTS * 2 // 5), arrivals(random, 2), strict=False)
    )
    return _merge(crawler(_NUM_REQUESTS * 3 // 5, 3, 10, seed), tuple(plain))


def _changing_pace(seed: int) -> Trace:
    """What was learned of quick crawls is wrong for those that come after; then the quick ones are back."""
    quick, slow, again = (crawler(_NUM_REQUESTS // 3, 4, delay, 3 * seed + part) for part, delay in enumerate((1, 10, 1)))
    return _merge(quick, _later(slow, quick[-1].arrival_s), _later(again, quick[-1].arrival_s + slow[-1].arrival_s))


def _later(trace: Trace, seconds: float) -> Trace:
    return tuple(replace(query, arrival_s=query.arrival_s + seconds) for query in trace)


def _merge(*traces: Trace) -> Trace:
    return tuple(sorted((query for trace in traces for query in trace), key=lambda query: query.arrival_s))


_LOADS: dict[str, tuple[str, Callable[[int], Trace]]] = {
    "decoding": ("crawls at 4 QPS, delay x10, answers of 128 tokens", _decoding),
    "mixed": ("crawls at 2 QPS, delay x10, and searches at 1 QPS, delay x30", _mixed),
    "plain": ("crawls at 3 QPS, delay x10, and plain prompts at 2 QPS", _beside_plain),
    "pace": ("crawls at 4 QPS, delay 1, then x10, then 1", _changing_pace),
}
CONDITIONS = tuple(Condition(key, label, make, pool) for key, (label, make) in _LOADS.items() for pool in POOLS)
