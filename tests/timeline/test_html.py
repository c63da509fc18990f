from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Timeline, render_html, timelines_from_json
from tests.timeline.samples import crawl, hostile

VOID = {"meta"}


class Page(HTMLParser):
    """Elements, attributes and the contents of scripts and styles of a page whose elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": [], "title": [], "h1": []}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.contents and "svg" not in self._open:
            self.contents[self._open[-1]].append(data)

    @property
    def policy(self) -> str:
        return next(value for name, value in self.attributes if name == "content" and "default-src" in value)


BOTH = [crawl("streaming"), crawl("non_streaming")]


def test_it_loads_and_links_nothing() -> None:
    page = Page(render_html(BOTH))
    assert not {"link", "img", "iframe", "a", "base", "object", "image", "use"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "xlink:href", "action", "style")]
    assert not re.search(r"url\(|@import|fetch\(|import\(", render_html(BOTH))


def test_it_allows_its_own_script_and_styles_and_no_others() -> None:
    page = Page(render_html(BOTH))
    _, script = page.contents["script"]
    for inline in (script, *page.contents["style"]):
        assert base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode() in page.policy
    assert "unsafe" not in page.policy
    assert page.policy.startswith("default-src 'none';")


def test_words_of_strangers_stay_text() -> None:
    text = render_html(hostile())
    page = Page(text)
    harmless = Page(render_html(BOTH))
    assert page.tags.count("script") == harmless.tags.count("script") == 2
    assert set(page.tags) <= set(harmless.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    shown = text.replace("\n", " ")
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") for character in shown)
    text.encode("utf-8")


def test_the_events_inside_can_be_read_back_and_cannot_leave_their_script() -> None:
    data, _ = Page(render_html(hostile())).contents["script"]
    assert timelines_from_json(data) == tuple(hostile())
    assert not re.search(r"[<>&]", data)


def test_the_title_is_the_question_or_what_was_asked_for() -> None:
    assert Page(render_html(BOTH)).contents["h1"] == ["How do I cancel a task?"]
    assert Page(render_html(BOTH, title="{wide} <b>")).contents["h1"] == ["{wide} <b>"]
    several = [Timeline("What?", "streaming"), Timeline("Why?", "streaming")]
    assert Page(render_html(several)).contents["title"] == ["2 questions"]


def test_ids_are_unique_and_what_refers_to_them_finds_them() -> None:
    page = Page(render_html(BOTH))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in page.attributes if name in ("aria-labelledby", "aria-describedby")} <= set(ids)
    _, script = page.contents["script"]
    assert set(re.findall(r'getElementById\("([^"]+)"\)', script)) <= set(ids)


def test_it_shows_wide_and_narrow_figures_the_measures_and_all_events() -> None:
    text = render_html(BOTH)
    assert text.count("<svg ") == 2
    assert "First token 125 ms after the final context, instead of 1.12 s: 9.0 times sooner." in text
    assert (
        '<tr><th scope="row">TTFT after the final context</th><td class="number">125 ms</td><td class="number">1.12 s</td></tr>'
        in text
    )
    assert text.count("<tr><td>") - 1 == sum(len(timeline.events) for timeline in BOTH)
    assert "<summary>The usual way: all 31 events</summary>" in text


def test_a_run_without_a_measure_has_an_empty_cell() -> None:
    text = render_html([BOTH[0], Timeline("Why?", "non_streaming")])
    assert '<td class="number">125 ms</td><td class="number"></td>' in text


def test_no_timeline_at_all_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        render_html([])
