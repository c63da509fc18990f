"""Swap over links to host memory of other speeds: where a copy costs what computing again does, it has to keep off."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.kept.store import Store
from benchmarks.paper import cells as paper
from benchmarks.wording import table
from stream2llm_rag.simulation.grid import Generated, Machine, Setting
from stream2llm_rag.simulation.model import KV_BYTES_PER_TOKEN
from stream2llm_rag.simulation.report import Row, compare, number
from stream2llm_rag.simulation.runs import Run

LOAD = paper.ABLATED[0]
POLICIES = ("density", "fcfs")
WAYS = ("auto", "swap")
SEEDS = paper.SEEDS[:3]
_NUM_GPUS = 2
_NOT_RUN = "-"


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


LINKS = tuple(Link(gb_per_s, pool) for gb_per_s in (25, 8) for pool in (0.35, 0.15))


def links_table(store: Store, papers: Store) -> str:
    """How many times sooner than NS; an ``auto`` is marked where one of the other two is surely sooner."""
    speeds = sorted({link.gb_per_s for link in LINKS}, reverse=True)
    heads = (
        "policy",
        "pool",
        "recompute",
        *(f"{way}, {speed} GB/s" for speed in ("50", *map("{:g}".format, speeds)) for way in WAYS),
    )
    return table(heads, (_line(store, papers, policy, pool) for policy in POLICIES for pool in paper.POOLS))


def _line(store: Store, papers: Store, policy: str, pool: float) -> list[str]:
    without = {"ns", policy}
    kept = papers.runs(paper.Cell(LOAD, pool))
    plain = [run for run in kept if run.frontend in without]
    links = sorted((link for link in LINKS if link.pool == pool), key=lambda link: -link.gb_per_s)
    swapping = [kept, *(store.runs(link) for link in links)]
    figures = [text for runs in swapping for text in _figures(plain, runs, policy)]
    num_missing = len(WAYS) * (1 + len(LINKS) // 2) - len(figures)
    return [f"`{policy}`", f"{pool:g}", _speedup(_rows(plain, policy).get(policy)), *figures, *[_NOT_RUN] * num_missing]


def _figures(plain: list[Run], swapping: list[Run], policy: str) -> list[str]:
    own = [run for run in swapping if run.frontend in {f"{policy}+{way}" for way in WAYS}]
    rows = _rows([*plain, *own], f"{policy}+auto")
    auto, swap = (rows.get(f"{policy}+{way}") for way in WAYS)
    return [_speedup(auto, [rows[name] for name in (policy, f"{policy}+swap") if name in rows]), _speedup(swap)]


def _rows(runs: list[Run], default: str) -> dict[str, Row]:
    return {row.frontend: row for row in compare(runs, default)}


def _speedup(row: Row | None, others: list[Row] | None = None) -> str:
    if row is None or row.speedup is None:
        return "not run yet"
    return "/".join(number(getattr(row.speedup, name)) + _mark(others or [], name) for name in ("p50", "p99"))


def _mark(others: list[Row], name: str) -> str:
    found = [row.to_default[name] for row in others if name in row.to_default]
    return "*" if any(one.is_apart and one.mean < 1 for one in found) else ""
