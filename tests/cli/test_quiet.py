from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.errors import EngineStartError, InvalidInputError

NOISE = """
import os, subprocess, sys
from stream2llm_rag.cli.quiet import quiet_terminal
with quiet_terminal() as terminal:
    print("noise from Python")
    print("noise from Python", file=sys.stderr)
    os.write(1, b"noise from C")
    os.write(2, b"noise from C")
    subprocess.run([sys.executable, "-c", "import sys; print('noise'); print('noise', file=sys.stderr)"], check=True)
    terminal.out.print("result")
    terminal.note("how it came about")
print("after")
print("after", file=sys.stderr)
"""


def test_only_the_command_itself_reaches_the_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "result\nafter\n", "how it came about\nafter\n")


def logs(folder: Path) -> list[Path]:
    return list(folder.glob("stream2llm-*.log"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def leave_with(error: BaseException, noise: bytes) -> BaseException:
    """Leave the block by ``error``, after some noise; return the error as it came out."""
    try:
        with quiet_terminal():
            os.write(2, noise)
            raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("error", [EngineStartError("it did not start"), ZeroDivisionError("a bug")])
def test_where_the_engine_may_be_the_cause_its_words_are_kept(folder: Path, error: Exception) -> None:
    caught = leave_with(error, b"the reason")
    [log] = logs(folder)
    assert log.read_text() == "the reason"
    assert caught.__notes__ == [f"What the engine wrote: {log}"]


@pytest.mark.parametrize("error", [InvalidInputError("no such scheme"), KeyboardInterrupt()])
def test_elsewhere_no_log_is_left(folder: Path, error: BaseException) -> None:
    caught = leave_with(error, b"noise")
    assert logs(folder) == []
    assert not hasattr(caught, "__notes__")


def test_no_log_is_left_where_nothing_went_wrong(folder: Path) -> None:
    with quiet_terminal():
        os.write(2, b"noise")
    assert logs(folder) == []


def test_an_engine_that_said_nothing_leaves_no_log(folder: Path) -> None:
    caught = leave_with(EngineStartError("there is no such model"), b"")
    assert logs(folder) == []
    assert not hasattr(caught, "__notes__")


@pytest.mark.parametrize(("chosen", "level"), [(None, "ERROR"), ("DEBUG", "DEBUG")])
def test_vllm_reports_errors_unless_the_user_chose_otherwise(
    chosen: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    if chosen is not None:
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", chosen)
    with quiet_terminal():
        assert os.environ["VLLM_LOGGING_LEVEL"] == level
