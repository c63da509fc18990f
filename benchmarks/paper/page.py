"""Writes docs/results.md, with its pictures, from the results that are there."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.kept.store import Store
from benchmarks.paper import tables
from benchmarks.paper.cells import CELLS, NUM_REQUESTS, POOLS, SEEDS, Cell
from benchmarks.paper.limits import limits_table
from benchmarks.paper.published import TTFT_S
from benchmarks.paper.words import BESIDE, DIFFERENCES, FIT, GPU, INTRODUCTION, LIMITS, MECHANISM, PRESSURE, THROUGHPUT
from benchmarks.wording import NOT_RUN
from stream2llm_rag.engine.policy import DEFAULT_POLICY, POLICIES
from stream2llm_rag.simulation.plots import draw_all
from stream2llm_rag.simulation.report import compare
from stream2llm_rag.simulation.runs import Run

GPU_RESULTS = Path("results/gpu/table.json")
PICTURES = "results"
_DRAWN = (
    *(cell for cell in CELLS if cell.load[2] == 1 and cell.pool == 1),
    Cell(("crawler", 4, 10), 0.35),
    Cell(("anns", 2, 30), 0.35),
)
"""TTFT against the rate, and how it is distributed where memory is short."""


def write_page(store: Store, folder: Path) -> None:
    """Write ``results.md`` and its pictures into ``folder``."""
    drawn = _draw(store, folder / PICTURES)
    (folder / "results.md").write_text(render(store, GPU_RESULTS, drawn), "utf-8")


def render(store: Store, gpu_results: Path, pictures: list[str]) -> str:
    """The page. ``pictures`` are names of files in ``docs/results``."""
    cells = {cell: {row.frontend: row for row in compare(store.runs(cell))} for cell in CELLS}
    by_load = {cell.load: rows for cell, rows in cells.items() if cell.pool == 1}
    in_order = {load: by_load[load] for load in TTFT_S}
    num_there = sum(len(store.runs(cell)) for cell in CELLS)
    num_all = sum(len(cell.settings()) for cell in CELLS)
    sections = [
        INTRODUCTION.format(num_there=num_there, num_all=num_all, num_requests=NUM_REQUESTS, num_seeds=len(SEEDS)),
        FIT.format(table=tables.fit_table(in_order)),
        BESIDE.format(agreement=tables.agreement_table(in_order), table=tables.beside_the_paper(in_order)),
        LIMITS.format(default=DEFAULT_POLICY, table=limits_table(in_order, DEFAULT_POLICY)),
        _pressure(cells),
        THROUGHPUT.format(table=tables.throughput_table(cells, DEFAULT_POLICY)),
        MECHANISM.format(table=tables.mechanism_table(by_load)),
        *(
            ["## Pictures\n", *(f"![{name.removesuffix('.svg').replace('-', ' ')}](results/{name})\n" for name in pictures)]
            if pictures
            else []
        ),
        DIFFERENCES,
        GPU.format(content=_gpu(gpu_results)),
    ]
    return "\n".join(sections)


def _pressure(cells: dict[Cell, tables.Rows]) -> str:
    pressed = {cell: rows for cell, rows in cells.items() if cell.load in {other.load for other in CELLS if other.pool < 1}}
    found = "".join(
        f"### {tables.load_label(cell.load)}, pool {cell.pool:g}\n\n"
        + (tables.cell_table(rows, DEFAULT_POLICY) if rows else f"{NOT_RUN.capitalize()}.\n")
        + "\n"
        for cell, rows in pressed.items()
    )
    standing = tables.standing_table(cells, DEFAULT_POLICY, list(POLICIES))
    pools = ", ".join(f"{pool:g}" for pool in POOLS)
    aims = tables.aims_table(cells, DEFAULT_POLICY)
    return PRESSURE.format(default=DEFAULT_POLICY, pools=pools, aims=aims, standing=standing, cells=found)


def _draw(store: Store, folder: Path) -> list[str]:
    runs = [run for cell in _DRAWN for run in store.runs(cell)]
    kept = ("ttft-against-qps", "ttft-crawler-delay", "ttft-anns-delay", "invalidated-anns-delay")
    files = [file for file in draw_all(runs, folder, suffixes=(".svg",)) if file.name.startswith(kept)] if runs else []
    for file in folder.glob("*.svg"):
        if file not in files:
            file.unlink()
    return [file.name for file in files]


def _gpu(path: Path) -> str:
    if not path.is_file():
        return "**Not run yet.** Nothing on this page, or elsewhere in this repository, has been measured on a GPU.\n"
    stored = json.loads(path.read_text("utf-8"))
    machines = "".join(
        f"* {', '.join(f'{key}: {value}' for key, value in machine.items())}\n" for machine in stored["machines"]
    )
    by_cell: dict[str, tables.Rows] = {}
    for row in compare([Run.from_json(run) for run in stored["runs"]]):
        by_cell.setdefault(row.cell, {})[row.frontend] = row
    found = "".join(f"### {name}\n\n{tables.cell_table(rows, DEFAULT_POLICY)}\n" for name, rows in by_cell.items())
    return f"Measured on\n\n{machines}\n{found}"
