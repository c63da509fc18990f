"""What is simulated, the most important first: loads, pools, front ends and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.paper.published import Load
from stream2llm_rag.simulation.grid import FRONTENDS, TOKEN_BUDGETS, Generated, Machine, Setting

NUM_REQUESTS = 2000
SEEDS = range(5)
POOLS = (1.0, 0.5, 0.35, 0.15)
"""Shares of the KV cache of two H200; all of them only under memory pressure."""
ALL_FRONTENDS = (*FRONTENDS, "density+hints")
SWAPPING = (*(f"{policy}+{way}" for policy in ("fcfs", "lcas", "density") for way in ("auto", "swap")), "density+hints+auto")
"""With host memory, at the loads of the paper's ablation."""

ABLATED: tuple[Load, ...] = (("crawler", 4, 10), ("anns", 2, 30))
PRESSED: tuple[Load, ...] = (("crawler", 4, 10), ("anns", 2, 30), ("anns", 2, 1))
"""Where memory is short, or becomes so in a smaller pool."""
OTHERS: tuple[Load, ...] = (
    ("crawler", 4, 1),
    ("crawler", 2, 1),
    ("anns", 1, 1),
    ("crawler", 1, 1),
    ("anns", 0.5, 1),
    ("crawler", 0.5, 1),
    ("anns", 0.25, 1),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One load on one pool; every front end and seed of it is a run."""

    load: Load
    pool: float

    @property
    def name(self) -> str:
        """What its file is called."""
        workload, qps, delay = self.load
        return f"{workload}-{qps:g}qps-x{delay:g}-pool{self.pool:g}"

    @property
    def frontends(self) -> Sequence[str]:
        """Those that are compared."""
        return (*ALL_FRONTENDS, *SWAPPING) if self.load in ABLATED else ALL_FRONTENDS

    def settings(
        self, frontends: Sequence[str] = (), seeds: Sequence[int] = SEEDS, num_requests: int = NUM_REQUESTS
    ) -> list[Setting]:
        """Its runs, seed by seed."""
        workload, qps, delay = self.load
        load = Generated(workload, qps, delay, num_requests)
        machine = Machine(pool=self.pool, token_budget=TOKEN_BUDGETS[workload])
        return [Setting(load, machine, frontend, seed) for seed in seeds for frontend in frontends or self.frontends]


CELLS = (
    *(Cell(load, pool) for load in PRESSED for pool in POOLS),
    *(Cell(load, 1.0) for load in OTHERS),
)
