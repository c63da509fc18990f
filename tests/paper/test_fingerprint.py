from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.kept import fingerprint as module
from benchmarks.kept.fingerprint import fingerprint, modules_of
from benchmarks.paper.cells import CELLS

SETTING = CELLS[0].settings()[0]
FUTURE, UNUSED = "import annotations\n", "import annotations\n_UNUSED = 1\n"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The package in a place where a test can change it."""
    for path in module._FOLDER.rglob("*.py"):
        copy = tmp_path / path.relative_to(module._FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget():
    for function in (module.modules_of, module._imported, module._digest):
        function.cache_clear()


def changed(path, old, new, frontends=("ns", "fcfs", "density")):
    """Which front ends' fingerprints a change of a file changes."""
    before = {name: fingerprint(replace(SETTING, frontend=name)) for name in frontends}
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    forget()
    return {name for name in frontends if fingerprint(replace(SETTING, frontend=name)) != before[name]}


def test_each_setting_has_its_own_and_always_the_same():
    settings = [setting for cell in CELLS for setting in cell.settings()]
    found = [fingerprint(setting) for setting in settings]
    assert len(set(found)) == len(found)
    assert found[:3] == [fingerprint(setting) for setting in settings[:3]]


def test_a_run_can_reach_the_simulator_and_ours_the_engine():
    assert {"stream2llm_rag.simulation.simulator", "stream2llm_rag.simulation.workloads"} <= modules_of("ns")
    assert not any(name.startswith("stream2llm_rag.engine") for name in modules_of("ns"))
    assert {"stream2llm_rag.engine.planner", "stream2llm_rag.engine.policy.density"} <= modules_of("density+hints")
    assert "stream2llm_rag.engine.policy.density" not in modules_of("fcfs")


def test_a_policy_from_outside_counts_with_its_module_and_all_of_ours(tmp_path, monkeypatch):
    file = tmp_path / "outside_policy.py"
    file.write_text("class Own: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = replace(SETTING, frontend="outside_policy:Own")
    before = fingerprint(own)
    assert {"stream2llm_rag.engine.policy.density", "stream2llm_rag.engine.planner"} <= modules_of(own.frontend)
    file.write_text("class Own: ...\n\n# A remark.\n")
    assert fingerprint(own) == before
    file.write_text("class Own:\n    rules = 1\n")
    assert fingerprint(own) != before


def test_words_do_not_count(copied):
    planner = copied / "engine" / "planner.py"
    assert changed(planner, "\n\nfrom __future__", "\n\n# A remark.\nfrom __future__") == set()
    text = planner.read_text("utf-8")
    docstring = text[: text.index('"""', 3) + 3]
    assert changed(planner, docstring, '"""Another."""') == set()


def test_code_counts_for_those_that_run_it(copied):
    assert changed(copied / "engine" / "planner.py", FUTURE, UNUSED) == {"fcfs", "density"}
    assert changed(copied / "engine" / "policy" / "density.py", FUTURE, UNUSED) == {"density"}
    assert changed(copied / "engine" / "policy" / "paper.py", FUTURE, UNUSED) == {"fcfs"}
    assert changed(copied / "simulation" / "workloads.py", "0.985", "0.99") == {"ns", "fcfs", "density"}
    assert changed(copied / "simulation" / "plots.py", "0.75", "0.8") == set()
    assert changed(copied / "errors.py", FUTURE, UNUSED) == set()


def test_the_hardwares_coefficients_count():
    machine = SETTING.machine
    step_time = replace(machine.hardware.step_time, base_s=5e-3)
    other = replace(SETTING, machine=replace(machine, hardware=replace(machine.hardware, step_time=step_time)))
    assert fingerprint(other) != fingerprint(SETTING)
