from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag.demo import TOPICS
from tests.cli.conftest import OpenedEngine, run, unboxed

FAST = ("--delay-s", "0", "--max-pages", "3", "--max-tokens", "4", "--model", "tiny")


@pytest.mark.usefixtures("fake_engine")
def test_it_compares_both_ways_and_says_where_the_timeline_lies(tmp_path: Path) -> None:
    done = run("demo", *FAST, "--out", tmp_path / "made" / "here", "--json", tmp_path / "demo.json")
    assert done.exit_code == 0, done.stderr
    page = tmp_path / "made" / "here" / "timeline.html"
    assert TOPICS[0].question in page.read_text()
    stored = json.loads((tmp_path / "demo.json").read_text())
    assert stored["timeline_html"] == str(page)
    assert stored["answers_equal"] is stored["control_differs"] is True
    assert page.as_uri() in done.stdout
    assert all(words in done.stdout for words in ("Streaming", "The usual way", "✓ Both ways answer alike", "✓ Control"))
    assert all(
        words in done.stderr for words in ("Crawling the documentation, from asyncio.tasks", "Replaying the same", "left out")
    )


@pytest.mark.usefixtures("fake_engine")
def test_what_it_stores_can_be_drawn_again(tmp_path: Path) -> None:
    run("demo", *FAST, "--out", tmp_path, "--json", tmp_path / "demo.json")
    assert "The usual way" in run("timeline", tmp_path / "demo.json").stdout


@pytest.mark.usefixtures("fake_engine")
def test_many_questions_are_asked_at_once_and_summed_up(tmp_path: Path) -> None:
    done = run("demo", *FAST, "--concurrency", "3", "--out", tmp_path, "--json", tmp_path / "demo.json")
    assert done.exit_code == 0, done.stderr
    stored = json.loads((tmp_path / "demo.json").read_text())
    assert [request["question"] for request in stored["requests"]] == [topic.question for topic in TOPICS[:3]]
    assert len(stored["timelines"]) == 6
    assert "Median" in done.stdout


@pytest.mark.usefixtures("fake_engine")
def test_a_question_of_ones_own_takes_the_place_of_the_first(tmp_path: Path) -> None:
    run("demo", *FAST, "--question", "[red]Why?", "--out", tmp_path, "--json", tmp_path / "demo.json")
    assert json.loads((tmp_path / "demo.json").read_text())["requests"][0]["question"] == "[red]Why?"


def test_a_context_that_does_not_count_is_exit_code_1(
    fake_engine: type[OpenedEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OpenedEngine._answer

    async def blind(self: OpenedEngine, token_ids: list[int]) -> AsyncIterator[Any]:
        async for output in whole(self, [1]):
            yield output

    monkeypatch.setattr(OpenedEngine, "_answer", blind)
    done = run("demo", *FAST, "--out", tmp_path, "--json", tmp_path / "demo.json")
    assert done.exit_code == 1
    assert "✗ Control" in done.stdout
    assert json.loads((tmp_path / "demo.json").read_text())["control_differs"] is False


def test_the_model_that_it_builds_is_called_noise(fake_engine: type[OpenedEngine], model_path: Path, tmp_path: Path) -> None:
    done = run("demo", *[option for option in FAST if option not in ("--model", "tiny")], "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    [engine] = fake_engine.opened
    assert (engine["model"], engine["dtype"]) == (str(model_path), "float32")
    assert "this text is noise" in unboxed(done.stdout)


def test_engine_arguments_come_before_those_of_the_demo(fake_engine: type[OpenedEngine], tmp_path: Path) -> None:
    arguments = [option for option in FAST if option not in ("--model", "tiny")]
    run("demo", *arguments, "--out", tmp_path, "--engine-arg", "max_model_len=9000")
    assert fake_engine.opened[0]["max_model_len"] == 9000


def test_an_empty_question_is_refused_before_an_engine_starts(fake_engine: type[OpenedEngine]) -> None:
    done = run("demo", "--question", " ")
    assert (done.exit_code, fake_engine.opened) == (2, [])
    assert "A question is text that is not empty" in done.stderr


def test_more_questions_than_there_are_is_refused() -> None:
    done = run("demo", "--concurrency", str(len(TOPICS) + 1))
    assert done.exit_code == 2
    assert "--concurrency" in done.stderr
