from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.simulation.trace import write_trace
from stream2llm_rag.simulation.workloads import anns
from stream2llm_rag.timeline import timelines_to_json
from tests.cli.conftest import run, unboxed
from tests.timeline.samples import crawl

FAST = ("--requests", "20", "--jobs", "1", "--front-end", "ns", "--front-end", "fcfs", "--front-end", DEFAULT_POLICY)


def test_it_compares_front_ends_over_seeds_and_writes_what_it_found(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("found.json", "found.csv", "pictures")]
    options = ("--workload", "crawler", "--qps", "4", "--delay", "10", "--pool", "1.0", "--seeds", "2")
    done = run("simulate", *options, *FAST, "--json", files[0], "--csv", files[1], "--pictures", files[2])
    assert done.exit_code == 0, done.output
    assert "crawler, delay x10, pool 1 of h200x2, 4 QPS; 2 seeds" in done.output
    assert all(f"\n{frontend} " in done.output for frontend in ("ns", "fcfs", DEFAULT_POLICY))
    stored = json.loads(files[0].read_text())
    assert [(found["frontend"], found["seed"]) for found in stored["runs"]] == [
        (frontend, seed) for frontend in ("ns", "fcfs", DEFAULT_POLICY) for seed in (0, 1)
    ]
    [fcfs] = [row for row in stored["rows"] if row["frontend"] == "fcfs"]
    assert fcfs["speedup"]["p50"] > 1
    assert fcfs["to_default"]["p50"]["low"] <= fcfs["to_default"]["p50"]["high"]
    assert len(files[1].read_text().splitlines()) == 7
    assert {file.suffix for file in files[2].iterdir()} == {".svg", ".png"}


def test_options_given_several_times_make_a_grid() -> None:
    done = run("simulate", "--workload", "crawler", "--workload", "anns", "--pool", "1", "--pool", "0.5", *FAST)
    assert done.exit_code == 0, done.output
    cells = [line for line in done.output.splitlines() if "requests measured" in line]
    assert [cell.split(";")[0] for cell in cells] == [
        f"{workload}, pool {pool} of h200x2, 4 QPS" for workload in ("crawler", "anns") for pool in ("1", "0.5")
    ]


def test_ways_to_preempt_are_for_policies_alone() -> None:
    done = run("simulate", "--pool", "0.1", "--preempt", "recompute", "--preempt", "auto", *FAST[:-2])
    assert done.exit_code == 0, done.output
    [header] = [line for line in done.output.splitlines() if "times sooner" in line]
    shown = done.output.split(header)[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in shown if line.strip()] == ["ns", "fcfs", "fcfs+auto"]


def test_it_replays_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    write_trace(file, anns(12, qps=1.0))
    done = run("simulate", "--trace", file, *FAST)
    assert done.exit_code == 0, done.output
    assert "mine.jsonl, pool 1 of h200x2; 1 seed, " in done.output


def test_it_replays_what_ask_stored_at_a_rate(tmp_path: Path) -> None:
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"answer": "So.", "timelines": json.loads(timelines_to_json([_asked()] * 8))}))
    done = run("simulate", "--trace", file, "--qps", "2", *FAST)
    assert done.exit_code == 0, done.output
    assert "asked.json, pool 1 of h200x2, 2 QPS; 1 seed, " in done.output


def _asked():
    from dataclasses import replace

    from stream2llm_rag.timeline import EventKind

    timeline = crawl("streaming")
    events = tuple(replace(event, tokens=30) if event.kind is EventKind.FINAL_CONTEXT else event for event in timeline.events)
    return replace(timeline, events=events)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workload", "spider"), "there is no workload 'spider'"),
        (("--front-end", "fastest", "--requests", "5"), "there is no front end 'fastest'"),
        (("--hardware", "abacus"), "the hardware 'abacus' cannot be read"),
        (("--pool", "0"), "pool is 0.0"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(options: tuple[str, ...], words: str) -> None:
    done = run("simulate", *options)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_trace_has_its_own_times(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    write_trace(file, anns(3, qps=1.0))
    assert "it has the times of its own" in unboxed(run("simulate", "--trace", file, "--delay", "2").stderr)
    assert "leave out --qps" in unboxed(run("simulate", "--trace", file, "--qps", "2").stderr)


def test_a_file_that_is_no_trace_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("hello\n")
    done = run("simulate", "--trace", file)
    assert (done.exit_code, "line 1" in done.stderr) == (2, True)
