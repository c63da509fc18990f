"""The default policy's benchmarks in other conditions, and those of its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kept.store import Store
from benchmarks.paper.cells import Cell
from benchmarks.policies import __main__ as command
from benchmarks.policies.conditions import CONDITIONS, FRONTENDS
from benchmarks.policies.links import LINKS, LOAD, links_table
from benchmarks.policies.tables import conditions_table, variants_table
from benchmarks.policies.variants import ABLATIONS, SEEDS, VARIANTS, Gittins, Oracle, _Indices
from stream2llm_rag.engine.policy import LiveRequest, make_policy
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.grid import Machine
from tests.simulation.samples import sample_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("condition", CONDITIONS[::2], ids=lambda condition: condition.key)
def test_a_condition_is_the_same_for_a_seed_and_another_for_the_next(condition):
    trace = condition.make(0)
    assert trace == condition.make(0) != condition.make(1)
    assert 990 <= len(trace) == len({query.query_id for query in trace}) <= 1000
    arrivals_s = [query.arrival_s for query in trace]
    assert arrivals_s == sorted(arrivals_s)


def test_every_front_end_is_run_for_every_seed():
    [first, *_] = CONDITIONS
    settings = first.settings()
    assert len({(setting.frontend, setting.seed) for setting in settings}) == len(settings) == 3 * len(FRONTENDS)


def test_every_variant_is_a_policy_that_differs_from_the_default():
    names = {setting.frontend for setting in ABLATIONS[0].settings()}
    assert {type(make_policy(name)) for name in names} >= set(VARIANTS)
    assert len(names) == len(VARIANTS) + 1


def test_an_index_is_the_least_time_held_for_a_use():
    times = _Indices(least_share=0.0)
    for residual_s in (1.0, 1.0, 100.0, 100.0, 100.0):
        times.add("kind", residual_s)
    # With the two medians as pseudo-samples: seven, of which two come after one second each.
    assert times.expected_s("kind", 0.0) == pytest.approx((2 * 1.0 + 5 * 1.0) / 2)
    assert isinstance(Gittins()._times, _Indices)


def test_the_oracle_knows_when_the_final_context_of_every_request_comes():
    trace = ABLATIONS[0].settings()[-1].load.trace(SEEDS[-1])
    query = next(query for query in trace if len(query.chunks) > 3)
    now = query.arrival_s + query.chunks[1].after_s
    request = LiveRequest(query.query_id, query.arrival_s, now, partial=True, num_computed=0, num_target=10, num_blocks=0)
    assert Oracle()._expected_s(request, now) == pytest.approx(query.chunks[-1].after_s - query.chunks[1].after_s)


def test_a_front_end_that_is_surely_slower_or_sooner_is_marked(tmp_path):
    store, condition = Store(tmp_path), CONDITIONS[0]
    for seed in range(3):
        for frontend, wait in (("ns", 8.0), ("density", 1.0), ("fcfs", 2.0 + seed / 100), ("lcas", 0.5 + seed / 100)):
            run = sample_run(frontend, [wait, wait], seed=seed, series=condition.label, qps=None)
            store.add(condition, "code", run)
    line = conditions_table(store).splitlines()[2]
    assert "| 3.98*/3.98* | 15.7+/15.7+ | not run yet | 8/8 | not run yet |" in line
    assert "not run yet" in variants_table(store)


def test_a_choice_that_is_surely_worse_than_what_it_chooses_from_is_marked(tmp_path):
    store, papers, link = Store(tmp_path / "own"), Store(tmp_path / "papers"), LINKS[0]
    waits = {"density": 2.0, "density+auto": 2.1, "density+swap": 4.0}
    for seed in range(5):
        for frontend, wait in {"ns": 8.0, **waits}.items():
            run = sample_run(frontend, [wait + seed / 100] * 2, seed=seed, series="link", qps=4)
            papers.add(Cell(LOAD, link.pool), "code", run)
            if "+" in frontend and seed < (3 if frontend == "density+auto" else 2):
                store.add(link, "code", run)
    [line] = [line for line in links_table(store, papers).splitlines() if f"`density` | {link.pool:g} |" in line]
    assert line.split(" | ")[2:] == [
        "3.97/3.97", "3.78*/3.78*", "2/2", "3.8*/3.8*", "not run yet", "not run yet", "not run yet |"
    ]  # fmt: skip


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_a_link_changes_what_copies_take_and_nothing_else(link):
    own, usual = link.machine, Machine(pool=link.pool)
    assert own.hardware.step_time.swap_out_token_s == pytest.approx(
        usual.hardware.step_time.swap_out_token_s * 50 / link.gb_per_s, rel=0.01
    )
    assert own.label == usual.label
    assert replace(own, hardware=usual.hardware) == usual


def test_the_tables_in_the_repository_are_what_the_results_say(tmp_path):
    for page in (command.POLICIES_PAGE, command.SWAP_PAGE):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text("utf-8"), "utf-8")
    (tmp_path / "results").symlink_to(ROOT / "results")
    command.write_tables(Store(ROOT / command.FOLDER), tmp_path)
    for page, num_tables in ((command.POLICIES_PAGE, 2), (command.SWAP_PAGE, 1)):
        text = (ROOT / page).read_text("utf-8")
        assert text == (tmp_path / page).read_text("utf-8")
        assert text.count("<!-- end of ") == num_tables


def test_a_page_without_a_place_for_a_table_is_an_error_that_says_what_to_write():
    with pytest.raises(InvalidInputError, match="Write <!-- links --> and <!-- end of links -->"):
        command.with_table("<!-- links -->\n", "links", "| a |\n")
