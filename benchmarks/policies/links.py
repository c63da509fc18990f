"""Swap over links to host memory of other speeds: where a copy costs what computing again does, it has to keep off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.kept.store import Store
from benchmarks.paper import cells as paper
from benchmarks.wording import NOT_RUN, speedup, table
from stream2llm_rag.simulation.grid import Generated, Machine, Setting
from stream2llm_rag.simulation.model import KV_BYTES_PER_TOKEN
from stream2llm_rag.simulation.report import Row, compare
from stream2llm_rag.simulation.runs import Run

LOAD = paper.ABLATED[0]
POLICIES = ("density", "fcfs")
WAYS = ("auto", "swap")
SEEDS = paper.SEEDS[:3]
_FULL_SPEED, _SPEEDS = 50.0, (25.0, 8.0)  # GB/s: of the paper's machine here, and of the others
_NUM_GPUS = 2
_NOT_PLANNED = "-"


@dataclass(frozen=True, slots=True)
class Link:
    """The paper's crawler under pressure on a pool of its machine, each of whose GPUs copies ``gb_per_s`` either way."""

    gb_per_s: float
    pool: float

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"link{self.gb_per_s:g}-pool{self.pool:g}"

    @property
    def machine(self) -> Machine:
        """It has the same name, as without swap it is the same."""
        made = Machine(pool=self.pool)
        token_s = KV_BYTES_PER_TOKEN / (_NUM_GPUS * self.gb_per_s * 1e9)
        step_time = replace(made.hardware.step_time, swap_out_token_s=token_s, swap_in_token_s=token_s)
        return replace(made, hardware=replace(made.hardware, step_time=step_time))

    def settings(self) -> list[Setting]:
        """Its runs, seed by seed; those without swap are the paper's."""
        load, machine = Generated(*LOAD, paper.NUM_REQUESTS), self.machine
        return [Setting(load, machine, f"{policy}+{way}", seed) for seed in SEEDS for policy in POLICIES for way in WAYS]


LINKS = tuple(Link(speed, pool) for speed in _SPEEDS for pool in (0.35, 0.15))


def links_table(store: Store, papers: Store) -> str:
    """How many times sooner than NS; an ``auto`` is marked where one of the other two is surely sooner."""
    speeds = (_FULL_SPEED, *_SPEEDS)
    heads = ("policy", "pool", "recompute", *(f"{way}, {speed:g} GB/s" for speed in speeds for way in WAYS))
    return table(heads, (_line(store, papers, policy, pool) for policy in POLICIES for pool in paper.POOLS))


def _line(store: Store, papers: Store, policy: str, pool: float) -> list[str]:
    kept = papers.runs(paper.Cell(LOAD, pool))
    plain = [run for run in kept if run.frontend in {"ns", policy}]
    figures = _figures(plain, kept, policy, len(paper.SEEDS))
    for speed in _SPEEDS:
        link = next((link for link in LINKS if (link.gb_per_s, link.pool) == (speed, pool)), None)
        figures += [_NOT_PLANNED] * len(WAYS) if link is None else _figures(plain, store.runs(link), policy, len(SEEDS))
    recomputing = _rows(plain, policy).get(policy)
    return [f"`{policy}`", f"{pool:g}", _speedup(recomputing, len(paper.SEEDS)), *figures]


def _figures(plain: list[Run], swapping: list[Run], policy: str, num_seeds: int) -> list[str]:
    own = [run for run in swapping if run.frontend in {f"{policy}+{way}" for way in WAYS}]
    rows = _rows([*plain, *own], f"{policy}+auto")
    auto, swap = (rows.get(f"{policy}+{way}") for way in WAYS)
    others = [rows[name] for name in (policy, f"{policy}+swap") if name in rows]
    return [_speedup(auto, num_seeds, others), _speedup(swap, num_seeds)]


def _rows(runs: list[Run], default: str) -> dict[str, Row]:
    return {row.frontend: row for row in compare(runs, default)}


def _speedup(row: Row | None, num_seeds: int, others: Sequence[Row] = ()) -> str:
    if row is None or row.num_seeds < num_seeds:
        return NOT_RUN
    return speedup(row, partial(_mark, others))


def _mark(others: Sequence[Row], name: str) -> str:
    found = [row.to_default[name] for row in others if name in row.to_default]
    return "*" if any(one.is_apart and one.mean < 1 for one in found) else ""
