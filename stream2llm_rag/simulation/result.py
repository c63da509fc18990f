"""What a simulated run gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream2llm_rag.engine.feedback import EngineCounters
from stream2llm_rag.simulation.records import RequestRecord, Summary


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What the engine core did in one run.

    ``busy_s`` are the seconds in which a step ran; ``stalled_s`` those in which requests had work, and none could run until
    something arrived. ``deadlocked_at_s`` is when something happened for the last time, where requests are left that never end.
    ``mean_kv_use``, over busy seconds, and ``peak_kv_use`` are shares of the pool. Whole and tail evictions are planned, by a
    scheduler of ours; preemptions are vLLM's own.
    """

    num_steps: int
    num_scheduled_tokens: int
    busy_s: float
    stalled_s: float
    deadlocked_at_s: float | None
    mean_kv_use: float
    peak_kv_use: float
    peak_num_live: int
    num_whole_evictions: int
    num_tail_evictions: int
    num_preemptions: int
    num_grants_refused: int


@dataclass(frozen=True, slots=True)
class WallClock:
    """Real seconds that a run took: in all, in the scheduler's calls, and of these beyond vLLM's own scheduling."""

    total_s: float
    schedule_s: float
    update_s: float
    planning_s: float


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """One run. The same inputs give an equal result, which leaves out the real time it took."""

    records: tuple[RequestRecord, ...]
    summary: Summary
    engine: EngineFigures
    wall: WallClock = field(compare=False)


@dataclass(slots=True)
class Tally:
    """Sums over the steps of a run that goes on."""

    num_steps: int = 0
    num_scheduled_tokens: int = 0
    num_preemptions: int = 0
    busy_s: float = 0.0
    stalled_s: float = 0.0
    kv_use_s: float = 0.0
    peak_kv_use: float = 0.0
    peak_num_live: int = 0

    def add(self, num_tokens: int, duration_s: float, kv_use: float, num_live: int) -> None:
        """Count a step."""
        self.num_steps += 1
        self.num_scheduled_tokens += num_tokens
        self.busy_s += duration_s
        self.kv_use_s += kv_use * duration_s
        self.peak_kv_use = max(self.peak_kv_use, kv_use)
        self.peak_num_live = max(self.peak_num_live, num_live)

    def figures(self, deadlocked_at_s: float | None, counters: EngineCounters | None) -> EngineFigures:
        """The figures, with the counters of a scheduler of ours."""
        return EngineFigures(
            num_steps=self.num_steps,
            num_scheduled_tokens=self.num_scheduled_tokens,
            busy_s=self.busy_s,
            stalled_s=self.stalled_s,
            deadlocked_at_s=deadlocked_at_s,
            mean_kv_use=self.kv_use_s / self.busy_s if self.busy_s else 0.0,
            peak_kv_use=self.peak_kv_use,
            peak_num_live=self.peak_num_live,
            num_whole_evictions=counters.num_whole_evictions if counters else 0,
            num_tail_evictions=counters.num_tail_evictions if counters else 0,
            num_preemptions=counters.num_preemptions if counters else self.num_preemptions,
            num_grants_refused=counters.num_grants_refused if counters else 0,
        )
