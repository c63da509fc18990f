"""One run, small enough to keep: its summary, and the distributions that pictures show. Values, and their JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.records import Percentiles, RequestRecord, Summary, percentile

EXCEEDING = tuple(round(10 ** (-tenths / 10), 5) for tenths in range(31))
"""Shares of requests, from all to one in a thousand, evenly spaced in their logarithm: where the distributions are kept."""


@dataclass(frozen=True, slots=True)
class Run:
    """One front end over one trace: simulated, or on a real engine.

    ``series`` says which load came to what, ``qps`` at which rate, None where it has none. Runs of one :attr:`cell` can be
    compared; those of one ``seed`` also had the same trace. Of the requests measured a share ``EXCEEDING[i]`` had a TTFT of
    ``ttft_s[i]`` or more, and ``num_invalidated[i]`` tokens invalidated or more.
    """

    series: str
    qps: float | None
    frontend: str
    seed: int
    summary: Summary
    ttft_s: tuple[float, ...]
    num_invalidated: tuple[int, ...]

    @property
    def cell(self) -> str:
        """Series and rate."""
        return self.series if self.qps is None else f"{self.series}, {self.qps:g} QPS"

    @classmethod
    def of(
        cls,
        series: str,
        qps: float | None,
        frontend: str,
        seed: int,
        measured: Sequence[RequestRecord],
        summary: Summary,
    ) -> Run:
        """A run with the distributions of ``measured`` records, those between ramp-up and drain (``records.between``)."""
        ttft_s = _distribution(record.ttft_s for record in measured)
        num_invalidated = _distribution(record.num_invalidated for record in measured)
        return cls(series, qps, frontend, seed, summary, ttft_s, tuple(map(round, num_invalidated)))

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON has; None for what is infinite, seconds to the microsecond."""
        values: dict[str, Any] = _plain(asdict(self))
        return values

    @classmethod
    def from_json(cls, stored: object) -> Run:
        """What :meth:`to_json` returned. Raises :class:`InvalidInputError` for anything else."""
        values = _object(stored, cls)
        summary = _object(values["summary"], Summary)
        for name in ("ttft_s", "arrival_to_first_token_s"):
            parts = _object(summary[name], Percentiles)
            summary[name] = Percentiles(**{part: _seconds(parts[part]) for part in parts})
        for name in ("completion_s", "throughput_rps"):
            summary[name] = _seconds(summary[name])
        return cls(
            **{
                **values,
                "summary": Summary(**summary),
                "ttft_s": tuple(map(_seconds, values["ttft_s"])),
                "num_invalidated": tuple(values["num_invalidated"]),
            }
        )


def _distribution(values: Iterable[float]) -> tuple[float, ...]:
    """The value that each share of :data:`EXCEEDING` reaches."""
    ordered = sorted(values)
    return tuple(ordered[0] if share == 1 else percentile(ordered, 100 * (1 - share)) for share in EXCEEDING)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _object(stored: object, kind: type[Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    if not isinstance(stored, dict) or stored.keys() != set(names):
        raise InvalidInputError(f"this is no {kind.__name__} of a run: {stored!r:.200}. It has {', '.join(names)}.")
    return dict(stored)


def _seconds(stored: float | None) -> float:
    return math.inf if stored is None else stored
