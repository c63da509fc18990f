"""The benchmark of swap for a GPU, on a CPU: the same code with a small cache. Its answers: tests/engine/test_swap.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_copies_are_measured_and_their_bytes_come_back(tmp_path: Path) -> None:
    stored = tmp_path / "swap.json"
    command = [sys.executable, "-m", "benchmarks.gpu_swap", "--tiny", "--parts", "bandwidth", "stall", "--json", str(stored)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = json.loads(stored.read_text())
    assert [row["num_blocks"] for row in found["bandwidth"]] == [1, 8, 16]
    assert all(row["bytes_come_back"] and row["out_gb_s"] > 0 and row["in_gb_s"] > 0 for row in found["bandwidth"])
    assert [row["copies"] for row in found["stall"]] == ["none", "fenced out", "early out", "in"]
    assert "bandwidth" in done.stdout
