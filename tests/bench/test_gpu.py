"""The benchmark for a GPU, on a CPU: the same code with a small model, on one real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=SCRIPT.parents[1])


def test_stock_vllm_serves_a_tight_pool_and_its_own_streaming_stands_still_in_it(tmp_path: Path) -> None:
    done = gpu("--tiny", "--cell", "tiny", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "all rounds are there" in done.stderr
    stored = json.loads((tmp_path / "table.json").read_text())
    rows = {row["frontend"]: row for row in stored["rows"]}
    assert rows["ns"]["num_unfinished"] == rows["ns"]["num_deadlocked"] == 0
    assert rows["ns"]["num_computed"] == rows["ns"]["num_prompt_tokens"]
    assert rows["native"]["num_unfinished"] > 0
    assert rows["native"]["num_deadlocked"] == 1
    assert rows["ns"]["ttft_s"]["p50"] > 0
    assert rows["ns"]["ttft_s"]["p99"] is None, "too few requests for it"
    assert "stalled" in done.stdout
    again = gpu("--tiny", "--cell", "tiny", "--folder", str(tmp_path))
    assert again.stdout == done.stdout, "what is there is not measured again"


def test_the_cells_are_listed_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    listed = gpu("--list", "--folder", str(tmp_path))
    assert "crawler-q2-p15" in listed.stdout
    assert listed.stdout.splitlines()[-2:] == ["equality", "equality-batch-invariant"]
    wrong = gpu("--cell", "nonesuch", "--folder", str(tmp_path))
    assert (wrong.returncode, "there is no cell 'nonesuch'" in wrong.stderr) == (2, True)
