"""``make paper`` on a grid that takes seconds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kept import pending as command
from benchmarks.kept.pending import adopt, pending, run_pending
from benchmarks.kept.store import Store
from benchmarks.paper import page
from benchmarks.paper.cells import ALL_FRONTENDS, CELLS, OTHERS, PRESSED, SEEDS, SWAPPING, Cell
from benchmarks.paper.published import FRONTENDS, SPEEDUP_BY_MECHANISM, TTFT_S
from benchmarks.paper.tables import agreement_table, cell_table, fit_table, standing_table
from benchmarks.wording import speedup
from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.simulation.frontends import make_frontend
from stream2llm_rag.simulation.report import compare
from tests.simulation.samples import sample_run

ROOT = Path(__file__).resolve().parents[2]
PRESSURE = CELLS[0]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "paper")


def kept(store, frontend, ttfts_s, cell=PRESSURE, seed=0):
    store.add(cell, "code", sample_run(frontend, ttfts_s, seed=seed, series=cell.settings()[0].series, qps=cell.load[1]))


def test_every_load_of_the_paper_and_every_policy_is_simulated():
    assert {cell.load for cell in CELLS if cell.pool == 1} == set(TTFT_S) == {*PRESSED, *OTHERS}
    assert {*FRONTENDS, *POLICIES, "native"} <= set(ALL_FRONTENDS)
    assert len(CELLS) == len({cell.name for cell in CELLS}) == 19


def test_host_memory_is_simulated_where_the_paper_ablates_it():
    swapping = {cell.load for cell in CELLS if set(SWAPPING) <= {setting.frontend for setting in cell.settings()}}
    assert swapping == {load for load, _ in SPEEDUP_BY_MECHANISM}
    assert all(make_frontend(name).swaps for name in SWAPPING)


def test_pressure_comes_first_with_all_seeds():
    assert [cell.load for cell in CELLS[:4]] == [("crawler", 4, 10)] * 4
    assert [setting.seed for setting in CELLS[0].settings()[:: len(CELLS[0].frontends)]] == list(SEEDS)


def test_what_was_kept_is_read_again(store, tmp_path):
    kept(store, "fcfs", [0.5, 1.0])
    kept(store, "ns", [1.0, float("inf")])
    again = Store(tmp_path / "paper")
    assert again.runs(PRESSURE) == store.runs(PRESSURE)
    assert [run.frontend for run in again.runs(PRESSURE)] == ["ns", "fcfs"]
    [file] = (tmp_path / "paper").iterdir()
    assert file.name == "crawler-4qps-x10-pool1.json"
    assert len(json.loads(file.read_text())) == 2
    assert len(file.read_text().splitlines()) == 4


@pytest.mark.parametrize("text", ["", "{", '[{"fingerprint": "x"}]', "[1]"])
def test_what_cannot_be_read_is_run_again(tmp_path, text):
    (tmp_path / f"{PRESSURE.name}.json").write_text(text)
    assert Store(tmp_path).runs(PRESSURE) == []


def test_only_what_is_missing_or_has_changed_is_run(tmp_path, monkeypatch, capsys):
    cells = (Cell(("crawler", 4, 10), 1.0), Cell(("anns", 2, 30), 0.5))
    few = {cell: cell.settings(("ns", "fcfs"), range(1), num_requests=12) for cell in cells}
    monkeypatch.setattr(Cell, "settings", lambda cell: few[cell])
    store = Store(tmp_path)
    assert [each.label for each in pending(store, cells, "anns")] == [
        "anns-2qps-x30-pool0.5 ns seed 0",
        "anns-2qps-x30-pool0.5 fcfs seed 0",
    ]
    run_pending(store, pending(store, cells), jobs=1)
    assert "4/4 anns-2qps-x30-pool0.5 fcfs seed 0: P50 " in capsys.readouterr().out
    again = Store(tmp_path)
    assert pending(again, cells) == []
    assert compare(again.runs(cells[0]), "fcfs")[1].speedup.p50 > 1
    monkeypatch.setattr(command, "fingerprint", lambda setting: f"new code of {setting.frontend}")
    assert len(pending(again, cells)) == 4


def test_the_fit_is_near_within_a_quarter_at_both_ends(store):
    load = ("crawler", 0.5, 1)
    cell = Cell(load, 1.0)
    paper = TTFT_S[load][0]
    for factor, verdict in ((1.2, "yes"), (1.3, "no")):
        kept(store, "ns", [factor * value for value in (paper[0], paper[0], paper[2], paper[2])], cell)
        rows = {row.frontend: row for row in compare(store.runs(cell))}
        assert f" | {verdict} |" in fit_table({load: rows})
    assert "not run yet" in fit_table({load: {}})


def test_how_near_streaming_comes_to_the_paper_is_a_median_with_its_ends(store):
    by_load = {}
    for qps, factor in ((0.5, 0.5), (1, 1.0), (2, 3.0)):
        cell = Cell(("crawler", qps, 1), 1.0)
        p50, _, p99 = TTFT_S[cell.load][FRONTENDS.index("fcfs")]
        kept(store, "fcfs", [factor * p50, factor * p50, factor * p99], cell)
        kept(store, "ns", [100.0], cell)  # does not stream
        by_load[cell.load] = {row.frontend: row for row in compare(store.runs(cell))}
    crawls, _, searches, _ = agreement_table(by_load).splitlines()[2:]
    assert crawls.startswith("| crawler | 3 | 1 [0.5, 3] |")
    assert crawls.endswith("| 1 [0.5, 3] |")
    assert searches == "| anns | 0 | not run yet |  |  |"


def test_each_comparison_with_the_default_is_won_lost_or_undecided(store):
    for seed in range(4):
        kept(store, "fcfs", [1.0, 2.0 + seed / 100], seed=seed)
        kept(store, "density", [0.5, 1.0], seed=seed)
        kept(store, "lcas", [1.9, 1.9, 1.9 if seed % 2 else 4.0], seed=seed)
    rows = {row.frontend: row for row in compare(store.runs(PRESSURE), "fcfs")}
    line = standing_table({PRESSURE: rows}, "fcfs", list(POLICIES)).splitlines()[2]
    _, cell, won, undecided, lost, _ = line.split("|")
    assert cell.strip() == "crawler 4 QPS, delay x10, pool 1"
    assert won.strip() == "1 of 4"
    assert re.findall(r"[a-z-]+ P\d+", undecided) == ["lcas P99"]
    assert re.findall(r"[a-z-]+ P\d+", lost) == ["density P50", "density P99"]
    assert standing_table({PRESSURE: {"ns": rows["fcfs"]}}, "fcfs", list(POLICIES)).count("\n") == 2


def test_a_deadlock_stands_in_the_table(store):
    kept(store, "native", [0.5, float("inf")])
    kept(store, "ns", [1.0, 1.0])
    table = cell_table({row.frontend: row for row in compare(store.runs(PRESSURE))}, "fcfs")
    assert "| native | 0.5/never/never | 2/0/0 |" in table
    assert "1 of 1 | 1 |" in table


def test_the_page_says_what_has_not_been_run(store, tmp_path):
    text = page.render(store, tmp_path / "none.json", [])
    assert "0 of 1,325 runs are there" in " ".join(text.split())
    assert "**Not run yet.** Nothing on this page" in text
    kept(store, "ns", [0.7, 5.0])
    assert "| crawler 4 QPS, delay x10 | 0.7/5/5 |" in page.render(store, tmp_path / "none.json", [])


def test_the_page_has_the_results_of_a_gpu_where_there_are_some(store, tmp_path):
    file = tmp_path / "table.json"
    runs = [
        sample_run(frontend, [wait], series="crawler-q2", qps=None).to_json()
        for frontend, wait in (("ns", 1.0), ("fcfs", 0.25))
    ]
    file.write_text(json.dumps({"machines": [{"gpu": "one of some kind"}], "runs": runs}))
    text = page.render(store, file, [])
    assert "gpu: one of some kind" in text
    assert "### crawler-q2" in text
    assert "| fcfs | 0.25/0.25/0.25 | 4/4/4 |" in text
    assert "Not run yet.** Nothing" not in text


def test_the_page_in_the_repository_is_what_the_results_say():
    store = Store(ROOT / "results" / "paper")
    pictures = [line.partition("(results/")[2].rstrip(")") for line in written().splitlines() if line.startswith("![")]
    assert written() == page.render(store, ROOT / page.GPU_RESULTS, pictures)
    assert sorted(pictures) == sorted(path.name for path in (ROOT / "docs" / "results").glob("*.svg"))


def test_the_readme_has_the_figures_of_the_results():
    store, readme = Store(ROOT / "results" / "paper"), (ROOT / "README.md").read_text("utf-8")
    for pool in (1.0, 0.35, 0.15):
        rows = {row.frontend: row for row in compare(store.runs(Cell(("crawler", 4, 10), pool)))}
        figures = (speedup(rows[name]) for name in ("fcfs", "density", "density+auto"))
        assert f"\n| {pool:g} | {' | '.join(figures)} |\n" in readme
        assert rows["native"].num_deadlocked == (0 if pool == 1 else rows["native"].num_seeds)


def written():
    return (ROOT / "docs" / "results.md").read_text("utf-8")


@pytest.fixture
def renamed_code(tmp_path, monkeypatch):
    """Two small cells that were run, and then the code has changed: ``(store, cells)``."""
    cells = (Cell(("crawler", 4, 10), 1.0), Cell(("crawler", 4, 10), 0.5))
    few = {cell: cell.settings(("ns", "fcfs"), range(2), num_requests=12) for cell in cells}
    monkeypatch.setattr(Cell, "settings", lambda cell: few[cell])
    store = Store(tmp_path)
    run_pending(store, pending(store, cells), jobs=1)
    monkeypatch.setattr(command, "fingerprint", lambda setting: f"new code of {setting.frontend}")
    return store, cells


def test_runs_of_changed_code_are_adopted_where_a_sample_comes_out_as_it_was(renamed_code, tmp_path, capsys):
    store, cells = renamed_code
    before = [store.runs(cell) for cell in cells]
    assert adopt(store, pending(store, cells), num_samples=1, jobs=1) == []
    assert capsys.readouterr().out.count("4 runs stay") == 2
    assert pending(Store(tmp_path), cells) == []
    assert [Store(tmp_path).runs(cell) for cell in cells] == before


def test_no_run_of_a_front_end_is_adopted_where_one_comes_out_otherwise(renamed_code, capsys):
    store, cells = renamed_code
    for cell in cells:
        for run in [run for run in store.runs(cell) if run.frontend == "fcfs"]:
            summary = replace(run.summary, num_evictions=run.summary.num_evictions + 1)
            store.add(cell, "old code", replace(run, summary=summary))
    left = adopt(store, pending(store, cells), num_samples=1, jobs=1)
    assert "fcfs: differs" in capsys.readouterr().out
    assert [each.setting.frontend for each in left] == ["fcfs"] * 3
