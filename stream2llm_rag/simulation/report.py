"""What many runs come to: figures over seeds, compared with the usual way and with the default policy. Pure.

The same for simulations and for benchmarks on the real engine, whose records are alike.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean, median, stdev
from typing import Any

from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.errors import MissingExtraError
from stream2llm_rag.simulation.records import Percentiles, Summary
from stream2llm_rag.simulation.runs import Run

BASELINE = "ns"
PERCENTS = tuple(field.name for field in fields(Percentiles))


@dataclass(frozen=True, slots=True)
class Interval:
    """How often one TTFT goes into another, seed by seed: the geometric mean, and the ends of its 95% confidence interval.

    The ends are None with fewer than two seeds, and where a TTFT is infinite.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def is_apart(self) -> bool:
        """Whether the interval lies on one side of 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Row:
    """One front end in one cell: medians over its seeds.

    ``speedup`` is how many times sooner than the usual way (NS) of the same seed the first token came, None without such runs,
    0 where it never came. ``to_default`` is TTFT in multiples of the default policy's. ``num_deadlocked`` counts seeds.
    """

    cell: str
    frontend: str
    num_seeds: int
    num_measured: int
    ttft_s: Percentiles
    arrival_to_first_token_s: Percentiles
    speedup: Percentiles | None
    to_default: dict[str, Interval]
    throughput_rps: float
    completion_s: float
    num_evictions: float
    num_computed: float
    num_prompt_tokens: float
    num_invalidated: float
    num_unfinished: int
    num_deadlocked: int


def compare(runs: Iterable[Run], default: str = DEFAULT_POLICY) -> list[Row]:
    """A row for each cell and front end, in the order in which they first come."""
    groups: dict[tuple[str, str], dict[int, Summary]] = {}
    for run in runs:
        groups.setdefault((run.cell, run.frontend), {})[run.seed] = run.summary
    return [
        _row(cell, frontend, summaries, groups.get((cell, BASELINE), {}), groups.get((cell, default), {}))
        for (cell, frontend), summaries in groups.items()
    ]


def _row(cell: str, frontend: str, own: dict[int, Summary], usual: dict[int, Summary], default: dict[int, Summary]) -> Row:
    seeds = [seed for seed in own if seed in usual]

    def over_seeds(value: Callable[[Summary], float]) -> float:
        return median(value(summary) for summary in own.values())

    return Row(
        cell=cell,
        frontend=frontend,
        num_seeds=len(own),
        num_measured=sum(summary.num_measured for summary in own.values()),
        ttft_s=_medians([summary.ttft_s for summary in own.values()]),
        arrival_to_first_token_s=_medians([summary.arrival_to_first_token_s for summary in own.values()]),
        speedup=_medians([_ratios(usual[seed].ttft_s, own[seed].ttft_s) for seed in seeds]) if seeds else None,
        to_default=_to_default(own, default),
        throughput_rps=over_seeds(lambda summary: summary.throughput_rps),
        completion_s=over_seeds(lambda summary: summary.completion_s),
        num_evictions=over_seeds(lambda summary: summary.num_evictions),
        num_computed=over_seeds(lambda summary: summary.num_computed),
        num_prompt_tokens=over_seeds(lambda summary: summary.num_prompt_tokens),
        num_invalidated=over_seeds(lambda summary: summary.num_invalidated),
        num_unfinished=sum(summary.num_unfinished for summary in own.values()),
        num_deadlocked=sum(summary.deadlocked for summary in own.values()),
    )


def _medians(each: Sequence[Percentiles]) -> Percentiles:
    return Percentiles(*(median(getattr(one, name) for one in each) for name in PERCENTS))


def _ratios(slow: Percentiles, fast: Percentiles) -> Percentiles:
    return Percentiles(*(ratio(getattr(slow, name), getattr(fast, name)) for name in PERCENTS))


def ratio(slow_s: float, fast_s: float) -> float:
    """How many times ``fast_s`` goes into ``slow_s``; 0 where ``fast_s`` is infinite."""
    if math.isinf(fast_s):
        return 0.0
    return slow_s / fast_s if fast_s > 0 else math.inf


def number(value: float) -> str:
    """Three digits of a number, all of a large one."""
    if math.isinf(value):
        return "never"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _to_default(own: dict[int, Summary], default: dict[int, Summary]) -> dict[str, Interval]:
    seeds = [seed for seed in own if seed in default]
    if not seeds:
        return {}
    pairs = [(own[seed].ttft_s, default[seed].ttft_s) for seed in seeds]
    return {name: interval([(getattr(one, name), getattr(other, name)) for one, other in pairs]) for name in PERCENTS}


def interval(pairs: Sequence[tuple[float, float]]) -> Interval:
    """The mean of first / second, which are positive, with its confidence (Student's t on the logarithms of paired ratios)."""
    ratios = [ratio(first, second) for first, second in pairs]
    if not all(0 < value < math.inf for value in ratios):
        return Interval(median(ratios), None, None)
    logarithms = [math.log(value) for value in ratios]
    mean = fmean(logarithms)
    if len(ratios) < 2:
        return Interval(math.exp(mean), None, None)
    half = _t_975(len(ratios) - 1) * stdev(logarithms) / math.sqrt(len(ratios))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _t_975(degrees_of_freedom: int) -> float:
    """The 97.5th percentile of Student's t distribution."""
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise MissingExtraError("SciPy", "bench") from error
    return float(stdtrit(degrees_of_freedom, 0.975))


def to_json(runs: Sequence[Run], default: str = DEFAULT_POLICY) -> dict[str, Any]:
    """Plain values: ``rows`` as of :func:`compare`, and the ``runs`` themselves; None for what is infinite."""
    rows = [_finite(asdict(row)) for row in compare(runs, default)]
    return {"baseline": BASELINE, "default_policy": default, "rows": rows, "runs": [run.to_json() for run in runs]}


def to_csv(runs: Sequence[Run]) -> str:
    """A line for each run with its summary; nothing where a value is infinite."""
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for run in runs:
        stored = run.to_json()
        line = {name: stored[name] for name in ("series", "qps", "frontend", "seed")} | _flat(stored["summary"])
        if writer is None:
            writer = csv.DictWriter(text, line, lineterminator="\n")
            writer.writeheader()
        writer.writerow(line)
    return text.getvalue()


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in summary.items():
        flat |= {f"{name}_{part}": item for part, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
