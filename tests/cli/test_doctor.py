from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream2llm_rag.doctor import Diagnosis, Finding, Status
from tests.cli.conftest import run

GOOD = Finding("python", Status.OK, "3.11.7")
ODD = Finding("memory", Status.WARN, "1.0 GiB available", "free 4 GiB or more")
BROKEN = Finding("vllm", Status.FAIL, "not installed", "pip install 'stream2llm-rag[vllm]'")


@pytest.fixture
def diagnosed(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    findings: list[Finding] = [GOOD]
    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", lambda: None)
    monkeypatch.setattr("stream2llm_rag.cli.doctor.diagnose", lambda _: Diagnosis(tuple(findings)))
    return findings


@pytest.mark.parametrize(("finding", "code"), [(GOOD, 0), (ODD, 0), (BROKEN, 1)])
def test_the_exit_code_says_whether_something_is_broken(diagnosed: list[Finding], finding: Finding, code: int) -> None:
    diagnosed.append(finding)
    assert run("doctor").exit_code == code


def test_what_was_found_and_how_to_mend_it_is_shown_as_it_is(diagnosed: list[Finding]) -> None:
    diagnosed.append(BROKEN)
    shown = run("doctor").stdout
    assert all(words in shown for words in ("python", "3.11.7", "not installed", "stream2llm-rag[vllm]"))


def test_names_of_packages_do_not_command_the_terminal(diagnosed: list[Finding]) -> None:
    diagnosed.append(Finding("requirements", Status.WARN, "\x1b[2J[red]odd\u202e", "\x1b]0;x\x07mend"))
    shown = run("doctor").stdout
    assert "\x1b" not in shown
    assert "[red]odd" in shown


def test_json_has_the_findings_even_where_something_is_broken(diagnosed: list[Finding], tmp_path: Path) -> None:
    diagnosed.append(BROKEN)
    assert run("doctor", "--json", tmp_path / "doctor.json").exit_code == 1
    stored = json.loads((tmp_path / "doctor.json").read_text())
    assert stored["status"] == "fail"
    assert [finding["check"] for finding in stored["findings"]] == ["python", "vllm"]
