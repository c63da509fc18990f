from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream2llm_rag.timeline import render_html, render_svg, timelines_to_json
from tests.cli.conftest import run
from tests.timeline.samples import crawl, hostile

BOTH = (crawl("streaming"), crawl("non_streaming"))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps({"ttft_speedup": 4, "timelines": json.loads(timelines_to_json(BOTH))}))
    return file


def test_what_a_command_stored_is_drawn(stored: Path) -> None:
    done = run("timeline", stored)
    assert done.exit_code == 0
    assert all(words in done.stdout for words in ("How do I cancel a task?", "Streaming", "The usual way", "prefill"))


def test_a_list_and_a_single_timeline_are_drawn_too(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(timelines_to_json(BOTH))
    (tmp_path / "one.json").write_text(BOTH[0].to_json())
    assert "The usual way" in run("timeline", tmp_path / "list.json").stdout
    assert "Streaming" in run("timeline", tmp_path / "one.json").stdout


def test_a_page_and_a_picture_are_written_where_asked(stored: Path, tmp_path: Path) -> None:
    assert run("timeline", stored, "--html", tmp_path / "t.html", "--svg", tmp_path / "t.svg").exit_code == 0
    assert (tmp_path / "t.html").read_text() == render_html(BOTH)
    assert (tmp_path / "t.svg").read_text() == render_svg(BOTH)


def test_words_of_strangers_do_not_command_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "hostile.json").write_text(timelines_to_json(hostile()))
    shown = run("timeline", tmp_path / "hostile.json").stdout
    assert {character for character in shown if ord(character) < 32} == {"\n"}
    assert not {"\x9b", "\u202e", "\u2066", "\x7f"} & set(shown)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"{}", "version"),
        (b'{"timelines": 7}', "7"),
        (b"[]", "timeline"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_holds_none_is_one_clear_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    done = run("timeline", tmp_path / "odd.json")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run("timeline", tmp_path / "nothing.json")
    assert done.exit_code == 2
    assert "does not exist" in done.stderr
