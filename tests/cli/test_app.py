from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import typer

import stream2llm_rag
from stream2llm_rag import cli
from stream2llm_rag.cli.options import parse_engine_args
from stream2llm_rag.errors import EngineDied, MissingExtraError
from tests.cli.conftest import run, unboxed


def test_it_tells_its_version() -> None:
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"stream2llm {stream2llm_rag.__version__}\n")


def test_without_arguments_it_names_its_commands() -> None:
    done = run()
    assert all(command in done.output for command in ("ask", "demo", "doctor", "simulate", "timeline"))


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_it_says_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(SystemExit, match=rf"error: {missing}.*pip install 'stream2llm-rag\[cli\]'"):
        cli.main()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EngineDied("a process is gone.\nOpen a new one."), "error: a process is gone. Open a new one.\n"),
        (MissingExtraError("vLLM", "vllm"), "error: vLLM is not installed. Write: pip install 'stream2llm-rag[vllm]'\n"),
        (EngineDied("\x1b]0;owned\x07[bold]a page\u202e said so"), "error: [bold]a page said so\n"),
    ],
)
def test_an_error_of_ours_is_one_line_and_exit_code_2(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", fail)
    done = run("doctor")
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", words)


def test_the_notes_of_an_error_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        error = EngineDied("gone.")
        error.add_note("What the engine wrote: /logs/x")
        raise error

    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", fail)
    assert run("doctor").stderr == "error: gone.\nWhat the engine wrote: /logs/x\n"


def test_an_error_that_is_none_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", lambda: 1 / 0)
    assert isinstance(run("doctor").exception, ZeroDivisionError)


def test_an_interruption_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", interrupt)
    assert run("doctor").exit_code == 130


def test_a_file_that_could_not_be_written_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", lambda: pytest.fail("it went to work"))
    done = run("doctor", "--json", tmp_path / "missing" / "file.json")
    assert done.exit_code == 2
    assert "is no folder" in unboxed(done.stderr)


def test_a_file_that_cannot_be_written_after_all_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "doctor.json"
    inspect = cli.doctor.inspect_machine

    def in_the_meantime() -> Any:
        file.mkdir()
        return inspect()

    monkeypatch.setattr("stream2llm_rag.cli.doctor.inspect_machine", in_the_meantime)
    done = run("doctor", "--json", file)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {file} cannot be written: Is a directory")


@pytest.mark.parametrize(
    ("assignment", "parsed"),
    [
        ("max_model_len=8192", {"max_model_len": 8192}),
        ("enforce-eager=true", {"enforce_eager": True}),
        ("--dtype=float32", {"dtype": "float32"}),
        ('hf_overrides={"a": [1]}', {"hf_overrides": {"a": [1]}}),
        ("served_model_name=a=b", {"served_model_name": "a=b"}),
        ("quantization=", {"quantization": ""}),
    ],
)
def test_engine_arguments_are_read_as_json_or_as_they_are(assignment: str, parsed: dict[str, Any]) -> None:
    assert parse_engine_args([assignment]) == parsed


@pytest.mark.parametrize("assignment", ["dtype", "=float32", "max model=1", ""])
def test_an_engine_argument_without_a_name_or_a_value_is_refused(assignment: str) -> None:
    with pytest.raises(typer.BadParameter, match="NAME=VALUE"):
        parse_engine_args([assignment])


def test_the_command_is_the_entry_point() -> None:
    from importlib.metadata import entry_points

    [command] = entry_points(group="console_scripts", name="stream2llm")
    assert command.load() is cli.main


def test_json_is_written_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    done = run("doctor", "--json", file)
    assert done.exit_code in (0, 1)
    assert {"status", "findings"} == json.loads(file.read_text()).keys()
