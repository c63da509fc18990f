"""The simulation of what was measured, beside it, and where the two part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from stream2llm_rag.bench.local import Measured
from stream2llm_rag.bench.pooling import pool_rounds
from stream2llm_rag.bench.replay import Round
from stream2llm_rag.bench.ways import Way
from stream2llm_rag.errors import MissingExtraError
from stream2llm_rag.simulation.grid import trim_s
from stream2llm_rag.simulation.records import RequestRecord, Summary
from stream2llm_rag.simulation.runs import Run
from stream2llm_rag.simulation.step_time import StepTime, fit

_CLOSE = 1.25
_MIN_STEPS = 8
_FITTED = ("base_s", "token_s", "attention_s", "kv_read_s")
_LONGEST_PAUSE_S = 0.01
"""After a longer one the core had nothing to do."""


@dataclass(frozen=True, slots=True)
class Beside:
    """One way, measured and simulated.

    ``simulated`` has the step time of the calibration; ``informed`` has for each round that of its own steps with the pauses
    between them, and the seconds that a request takes beyond its steps: what still differs there is not the machine's speed.
    ``slowdown`` is by how much longer the steps of the rounds took than the calibration says.
    """

    way: Way
    measured: Run
    simulated: Run
    informed: Run
    slowdown: float

    def remarks(self) -> list[str]:
        """Where they part, and why as far as that is known."""
        found = []
        real, plain, informed = (run.summary for run in (self.measured, self.simulated, self.informed))
        if real.deadlocked != plain.deadlocked:
            found.append(f"it stood still only {'in reality' if real.deadlocked else 'in the simulation'}")
        for name in ("p50", "p95"):
            remark = self._remark(*(getattr(summary.ttft_s, name) for summary in (real, plain, informed)))
            found += [f"TTFT {name.upper()} {remark}"] if remark else []
        return found

    def _remark(self, there: float, simulated: float, better: float) -> str:
        """Why a TTFT in reality is another than the simulated ones; nothing where all agree."""
        if is_close(there, simulated) and is_close(there, better):
            return ""
        if is_close(there, simulated):
            why = "that agrees, but does not with the times of the rounds' own steps, so errors may cancel out"
        elif is_close(there, better):
            why = (
                f"the steps of the rounds took {self.slowdown:.2f} times what the calibration says; with their own times, the "
                "pauses between them, and each request's way to the core and back, the simulation agrees"
            )
        else:
            why = (
                "neither the times of the rounds' own steps, nor the pauses between them, nor each request's way to the core "
                "and back explain all of it"
            )
        return f"{there:.3f} s, simulated {simulated:.3f} s: {why} ({better:.3f} s)"


def is_close(first: float, second: float) -> bool:
    """Within a quarter of each other, or both infinite."""
    return first == second or max(first, second) <= _CLOSE * min(first, second)


def simulate_beside(measured: Measured, series: str) -> list[Beside]:
    """Simulate every way over the traces that were replayed. ``series`` names the runs."""
    return [_beside(measured, way, series) for way in measured.plan.settings.ways]


def measured_run(measured: Measured, way: Way, series: str) -> Run:
    """The rounds of one way as one run."""
    rounds = measured.of(way)
    is_stalled = any(done.stalled for done in rounds)
    return _pool(measured, way, series, [done.records for done in rounds], is_stalled)


def _beside(measured: Measured, way: Way, series: str) -> Beside:
    calibrated = measured.calibration.fit.step_time
    rounds = measured.of(way)
    simulated = _simulate(measured, way, [calibrated] * len(rounds))
    records, is_deadlocked = _simulate(measured, way, [_own_step_time(done, calibrated) for done in rounds])
    informed = [[_later(record, measured.calibration.overhead_s) for record in one] for one in records]
    return Beside(
        way=way,
        measured=measured_run(measured, way, f"{series}, on this machine"),
        simulated=_pool(measured, way, f"{series}, simulated", *simulated),
        informed=_pool(measured, way, f"{series}, simulated with the steps of the rounds", informed, is_deadlocked),
        slowdown=slowdown(rounds, calibrated),
    )


def slowdown(rounds: Sequence[Round], step_time: StepTime) -> float:
    """The seconds of all steps in ``rounds``, in multiples of what ``step_time`` says; 1 where there was no step."""
    steps = [step for done in rounds for step in done.steps]
    return sum(step.seconds for step in steps) / sum(step_time(step.items) for step in steps) if steps else 1.0


def _own_step_time(done: Round, otherwise: StepTime) -> StepTime:
    """That of the round's steps, the core's mean pause between two steps that follow each other included.

    The fit keeps relative errors small, so it lies below the mean where steps of a kind differ much; it is scaled to the sum.
    """
    steps = [(step.items, step.seconds) for step in done.steps if step.seconds > 0]
    if len(steps) < _MIN_STEPS:
        return otherwise
    fitted = fit(steps).step_time
    factor = slowdown([done], fitted)
    pauses_s = [step.gap_s for step in done.steps if step.gap_s < _LONGEST_PAUSE_S]
    scaled = replace(fitted, **{name: factor * getattr(fitted, name) for name in _FITTED})
    return replace(scaled, base_s=scaled.base_s + fmean(pauses_s)) if pauses_s else scaled


def _simulate(measured: Measured, way: Way, step_times: Sequence[StepTime]) -> tuple[list[Sequence[RequestRecord]], bool]:
    """The records of each trace, and whether any came to a deadlock."""
    try:
        from stream2llm_rag.simulation.building import CoreShape
        from stream2llm_rag.simulation.frontends import make_frontend
        from stream2llm_rag.simulation.simulator import simulate
    except ImportError as error:
        raise MissingExtraError("vLLM", "vllm") from error
    plan = measured.plan
    shape = CoreShape(
        num_blocks=plan.num_blocks,
        token_budget=plan.token_budget,
        max_num_seqs=plan.token_budget,
        max_model_len=plan.max_model_len,
        block_size=plan.block_size,
        prefix_caching=plan.settings.prefix_caching,
        v2_runner=False,  # which vLLM does not have on a CPU
    )
    results = [
        simulate(trace, make_frontend(way.name), step_time, shape)
        for trace, step_time in zip(measured.traces, step_times, strict=True)
    ]
    return [result.records for result in results], any(result.summary.deadlocked for result in results)


def _later(record: RequestRecord, overhead_s: float) -> RequestRecord:
    return replace(record, first_token_s=record.first_token_s + overhead_s, finished_s=record.finished_s + overhead_s)


def _pool(measured: Measured, way: Way, series: str, rounds: Sequence[Sequence[RequestRecord]], stalled: bool) -> Run:
    trimmed_s = min(trim_s(trace) for trace in measured.traces)
    summary: Summary = pool_rounds(rounds, trim_s=trimmed_s, stalled=stalled, min_for_p99=1)
    records = [record for one in rounds for record in one]
    return Run.of(series, measured.plan.settings.qps, way.name, 0, records, summary)
