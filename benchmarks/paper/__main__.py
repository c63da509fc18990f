"""Simulate what is missing or has changed, and write docs/results.md.

    python -m benchmarks.paper [--jobs N] [--only TEXT] [--list] [--render]

Runs are kept in results/paper as they end; when interrupted, start it again. ``--only`` takes the runs that have TEXT in their
line of ``--list``, such as "crawler-4qps" or "pool1 ns"; ``--render`` only writes the page.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.paper.cells import CELLS, Cell
from benchmarks.paper.fingerprint import fingerprint
from benchmarks.paper.page import write_page
from benchmarks.paper.store import Store
from stream2llm_rag.errors import Stream2LLMError
from stream2llm_rag.simulation.grid import Setting, run_all


@dataclass(frozen=True, slots=True)
class Pending:
    """A run that is missing, or was decided by something else than what is there now."""

    cell: Cell
    setting: Setting
    fingerprint: str

    @property
    def label(self) -> str:
        """Its line."""
        return f"{self.cell.name} {self.setting.frontend} seed {self.setting.seed}"


def pending(store: Store, only: str = "") -> list[Pending]:
    """What is to be run, the most important first."""
    found = []
    for cell in CELLS:
        kept = store.of(cell)
        for setting in cell.settings():
            missing = Pending(cell, setting, fingerprint(setting))
            own = kept.get((setting.frontend, setting.seed))
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs that have this in their line")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--render", action="store_true", help="only write docs/results.md and its pictures")
    options = parser.parse_args()
    store = Store()
    missing = [] if options.render else pending(store, options.only)
    if options.list:
        print("\n".join(each.label for each in missing))
        return 0
    try:
        run_pending(store, missing, options.jobs)
    except KeyboardInterrupt:
        print("interrupted; what had ended is kept", file=sys.stderr)
        return 130
    except Stream2LLMError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    write_page(store, Path("docs"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
