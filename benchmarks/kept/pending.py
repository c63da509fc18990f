"""Which runs are missing, and running them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from benchmarks.kept.cells import Cell
from benchmarks.kept.fingerprint import fingerprint
from benchmarks.kept.store import Store
from stream2llm_rag.simulation.grid import Setting, run_all
from stream2llm_rag.simulation.runs import Run


@dataclass(frozen=True, slots=True)
class Pending:
    """A run that is missing, or was decided by something else than what is there now: then ``stale`` is what it was."""

    cell: Cell
    setting: Setting
    fingerprint: str
    stale: Run | None = None

    @property
    def label(self) -> str:
        """Its line."""
        return f"{self.cell.name} {self.setting.frontend} seed {self.setting.seed}"


def pending(store: Store, cells: Iterable[Cell], only: str = "") -> list[Pending]:
    """What is to be run, the most important first; ``only`` what has this in its line."""
    found = []
    for cell in cells:
        kept = store.of(cell)
        for setting in cell.settings():
            own = kept.get((setting.frontend, setting.seed))
            missing = Pending(cell, setting, fingerprint(setting), None if own is None else own.run)
            if only in missing.label and (own is None or own.fingerprint != missing.fingerprint):
                found.append(missing)
    return found


def run_pending(store: Store, missing: list[Pending], jobs: int) -> None:
    """Run them, keeping each as it ends."""
    started = time.monotonic()
    for number, (index, run) in enumerate(run_all([each.setting for each in missing], jobs), start=1):
        store.add(missing[index].cell, missing[index].fingerprint, run)
        left_s = (time.monotonic() - started) / number * (len(missing) - number)
        figures = f"P50 {run.summary.ttft_s.p50:.3f} s, P99 {run.summary.ttft_s.p99:.3f} s"
        print(f"{number}/{len(missing)} {missing[index].label}: {figures}; {left_s / 60:.0f} minutes left", flush=True)


def adopt(store: Store, missing: list[Pending], num_samples: int, jobs: int) -> list[Pending]:
    """After a change of code that should change no result: run a sample of the stale runs of each front end anew.

    Of a front end whose sample comes out to the last digit as it was, the other stale runs are kept as the new code's; of one
    that differs anywhere, none is. Returns what is still to be run.
    """
    stale: dict[str, list[Pending]] = {}
    for each in missing:
        if each.stale is not None:
            stale.setdefault(each.setting.frontend, []).append(each)
    dice = Random(0)
    samples = [each for group in stale.values() for each in dice.sample(group, min(num_samples, len(group)))]
    run_pending(store, samples, jobs)
    differing = {each.setting.frontend for each in samples if store.run_of(each.cell, each.setting) != each.stale}
    settled = {each.label for each in samples}
    for frontend, group in stale.items():
        print(f"{frontend}: " + ("differs" if frontend in differing else f"{len(group)} runs stay"), flush=True)
        for each in group if frontend not in differing else ():
            if each.label not in settled and each.stale is not None:
                store.add(each.cell, each.fingerprint, each.stale)
                settled.add(each.label)
    return [each for each in missing if each.label not in settled]
