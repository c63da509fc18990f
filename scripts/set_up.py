"""Make .venv ready for work: the pinned packages for this machine, the development tools, and the project itself, editable.

Needs Python 3.11 to 3.13 and nothing installed. A stamp in .venv, written last, holds a fingerprint of all that decides what is
in there. Where it matches, nothing is done; otherwise .venv is built from scratch, so that an interrupted or outdated one is
never used.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PIP = "pip==26.3"
STAMP = "set-up.stamp"
ROOT = Path(__file__).resolve().parent.parent


class SetUpError(Exception):
    """A step failed; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the set-up. ``hint`` says what to do when it fails."""

    name: str
    command: tuple[str, ...]
    hint: str


def gpu_answers() -> bool:
    """Whether an NVIDIA driver with a GPU answers: ``nvidia-smi`` exits with 0."""
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, stdin=subprocess.DEVNULL, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def lock_files(root: Path, flavour: str) -> tuple[Path, Path]:
    """The pinned packages of a flavour, ``cpu`` or ``gpu``, and those of the tools."""
    return root / "requirements" / f"{flavour}.txt", root / "requirements" / "dev.txt"


def fingerprint(root: Path, flavour: str, python: str) -> str:
    """What decides the content of ``root/.venv``, as a digest.

    Of pyproject.toml only what the installed project is made from: a changed lint rule installs nothing. ``root``
    itself counts, for an environment does not survive being moved.
    """
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    parts = [PIP, flavour, python, str(root), json.dumps([pyproject["build-system"], pyproject["project"]])]
    parts += [path.read_text() for path in lock_files(root, flavour)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def torch_pin(lock: Path) -> str:
    """The line of a lock file that pins torch."""
    return next(line for line in lock.read_text().splitlines() if line.startswith("torch="))


def plan(root: Path, flavour: str, *, torch_index_url: str | None, quiet: bool) -> list[Step]:
    """The steps that build ``root/.venv`` from nothing."""
    venv = root / ".venv"
    lock, tools = lock_files(root, flavour)
    # -qq, as -q still reports each index that does not have a package.
    pip = (str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", *(["-qq"] if quiet else []))
    index = ("--extra-index-url", torch_index_url) if torch_index_url else ()
    again = "See the message above; `make setup` starts over."
    return [
        Step(
            "Create .venv",
            (sys.executable, "-m", "venv", "--clear", str(venv)),
            "On Debian and Ubuntu the package python3-venv is needed. " + again,
        ),
        Step(f"Install {PIP}", (*pip, PIP), again),
        Step(
            f"Install {torch_pin(lock)}",
            (*pip, "--no-deps", *index, torch_pin(lock)),
            "If the configured package indexes do not have this build, set TORCH_INDEX_URL to the one that PyTorch's "
            "installation page shows for pip and this compute platform, then run `make setup` again.",
        ),
        Step(
            f"Install the packages of {lock.name} and {tools.name}",
            (*pip, "--no-deps", "-r", str(lock), "-r", str(tools)),
            again,
        ),
        Step("Install stream2llm-rag, editable", (*pip, "--no-deps", "--no-build-isolation", "--editable", str(root)), again),
    ]


Runner = Callable[[Sequence[str]], int]


def run(command: Sequence[str]) -> int:
    """Run a command without input; return its exit status."""
    return subprocess.run(command, stdin=subprocess.DEVNULL).returncode


def build(root: Path, steps: Sequence[Step], stamp: str, run: Runner) -> None:
    """Carry out the steps and write the stamp after the last. Raises SetUpError at the first that fails."""
    path = root / ".venv" / STAMP
    path.unlink(missing_ok=True)
    for number, step in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {step.name}", flush=True)
        started_s = time.monotonic()
        if status := run(step.command):
            raise SetUpError(f"{step.name}: failed with exit status {status}: {shlex.join(step.command)}\n{step.hint}")
        print(f"      {time.monotonic() - started_s:.0f} s", flush=True)
    path.write_text(stamp)


@contextmanager
def alone() -> Iterator[None]:
    """Keep two set-ups of one checkout from building the same .venv at once: the second waits."""
    with open(__file__) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up is at work here; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up(root: Path, flavour: str, run: Runner = run) -> None:
    """Build ``root/.venv`` unless it is what it should be. Raises SetUpError."""
    python = platform.python_version()
    stamp = fingerprint(root, flavour, python)
    written = root / ".venv" / STAMP
    if written.exists() and written.read_text() == stamp:
        print(f".venv is up to date: {flavour}, Python {python}.")
        return
    print(f"Building .venv: {flavour}, Python {python}.", flush=True)
    steps = plan(root, flavour, torch_index_url=os.environ.get("TORCH_INDEX_URL"), quiet=not sys.stdout.isatty())
    build(root, steps, stamp, run)
    print("Ready.")


def main() -> int:
    """Set up the checkout that this file is in; return the exit status."""
    parser = argparse.ArgumentParser(description="Make .venv ready for work.")
    parser.add_argument("--flavour", choices=("auto", "cpu", "gpu"), default="auto", help="auto: gpu where nvidia-smi answers")
    flavour = parser.parse_args().flavour
    if flavour == "auto":
        flavour = "gpu" if gpu_answers() else "cpu"
    try:
        with alone():
            set_up(ROOT, flavour)
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; .venv is incomplete, `make setup` starts over.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
