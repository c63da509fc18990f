"""The demo as a user runs it: the command, a live crawl, the real engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Demo:
    shown: str
    notes: str
    stored: dict[str, Any]
    logs: list[Path]


@pytest.fixture(scope="module")
def demo(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One run for all tests of this module: it takes about a minute."""
    folder = tmp_path_factory.mktemp("demo")
    scratch = tmp_path_factory.mktemp("scratch")
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    command = [str(Path(sys.executable).with_name("stream2llm")), "demo", "--json", str(folder / "demo.json")]
    done = subprocess.run(
        [*command, "--out", str(folder)],
        capture_output=True,
        text=True,
        env={**environment, "TMPDIR": str(scratch)},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return Demo(done.stdout, done.stderr, json.loads((folder / "demo.json").read_text()), list(scratch.glob("*.log")))


def test_both_ways_give_the_same_answer_and_the_control_another(demo: Demo) -> None:
    assert demo.stored["answers_equal"] is True
    assert demo.stored["control_differs"] is True


def test_enough_pages_and_tokens_come_for_the_comparison_to_mean_something(demo: Demo) -> None:
    for way in ("streaming", "non_streaming"):
        assert demo.stored[way]["num_pages"] >= 8
        assert demo.stored[way]["prompt_tokens"] >= 8000
    assert demo.stored["streaming"]["prompt_tokens"] == demo.stored["non_streaming"]["prompt_tokens"]
    assert demo.stored["last_delta_tokens"] >= 0.05 * demo.stored["streaming"]["prompt_tokens"]


def test_only_streaming_computes_before_the_final_context(demo: Demo) -> None:
    assert demo.stored["streaming"]["overlap_tokens"] > 0
    assert demo.stored["non_streaming"]["overlap_tokens"] == 0


def test_the_replay_brings_the_pages_of_the_crawl_at_their_times(demo: Demo) -> None:
    streamed, usual = ([event for event in run["events"] if event["kind"] == "fetch"] for run in demo.stored["timelines"])
    assert [event["label"] for event in streamed] == [event["label"] for event in usual]
    spans = [[event["end_s"] - event["start_s"] for event in events] for events in (streamed, usual)]
    assert spans[0] == pytest.approx(spans[1], abs=1e-3)


def test_the_page_with_the_timelines_is_where_it_says(demo: Demo) -> None:
    page = Path(demo.stored["timeline_html"])
    assert page.as_uri() in demo.shown
    assert "The usual way" in page.read_text()


def test_nothing_of_what_the_engine_writes_reaches_the_terminal(demo: Demo) -> None:
    shown = demo.shown + demo.notes
    logged = "Traceback|safetensors|Triton|Warning|INFO|ERROR"
    assert re.findall(rf"\b(?:{logged})\b", shown) == []  # inside other words the model may write what it likes
    assert demo.logs == []
