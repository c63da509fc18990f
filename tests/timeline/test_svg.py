from __future__ import annotations

import re
import unicodedata
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Event, EventKind, Timeline, render_svg
from stream2llm_rag.timeline.canvas import Canvas, Place, places_beside
from stream2llm_rag.timeline.svg import NARROW, WIDE, Geometry, figure
from tests.timeline.samples import HOSTILE, crawl, hostile, timelines

SVG = "{http://www.w3.org/2000/svg}"
DRAWN = {"svg", "title", "desc", "style", "rect", "path", "text", "g"}


def parsed(several: list[Timeline]) -> ET.Element:
    return ET.fromstring(render_svg(several))


def tags(root: ET.Element) -> set[str]:
    return {element.tag.removeprefix(SVG) for element in root.iter()}


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def x_of(path: ET.Element) -> float:
    found = re.match(r"M([\d.]+) ", path.attrib["d"])
    assert found
    return float(found[1])


def by_class(root: ET.Element, style: str) -> list[ET.Element]:
    return [element for element in root.iter() if element.get("class") == style]


@settings(max_examples=50)
@given(st.lists(timelines, min_size=1, max_size=2))
def test_any_timeline_is_well_formed_xml_of_known_elements(several: list[Timeline]) -> None:
    assert tags(parsed(several)) <= DRAWN


def test_words_of_strangers_stay_text() -> None:
    root = parsed(hostile())
    assert tags(root) <= DRAWN
    assert "</script><script>alert(1)</script>" in texts(root)
    assert not any(name.startswith("on") or "href" in name for element in root.iter() for name in element.attrib)
    shown = [text for element in root.iter() for text in (element.text or "").splitlines()]
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") for text in shown for character in text)


def test_it_refers_to_nothing_outside() -> None:
    document = render_svg([crawl("streaming"), crawl("non_streaming")])
    assert not re.search(r"href|src|url\(|@import|<!|<\?", document)
    assert document.count("http") == document.count('xmlns="http://www.w3.org/2000/svg"') == 1


def test_the_earlier_first_token_stands_further_left_and_the_wait_is_narrower() -> None:
    root = parsed([crawl("streaming"), crawl("non_streaming")])
    ours, usual = (x_of(path) for path in by_class(root, "first-token"))
    assert ours < usual
    narrow, wide = (float(rectangle.attrib["width"]) for rectangle in by_class(root, "wait"))
    assert wide == pytest.approx(9 * narrow, rel=0.02)


def test_the_final_contexts_of_both_runs_stand_above_each_other() -> None:
    first, second = by_class(parsed([crawl("streaming"), crawl("non_streaming")]), "final-context")
    assert x_of(first) == x_of(second)


def test_it_says_what_it_shows() -> None:
    root = parsed([crawl("streaming"), crawl("non_streaming")])
    shown = texts(root)
    for words in (
        "How do I cancel a task?",
        "TTFT 125 ms · first token 6.25 s",
        "final context 6.12 s",
        "Page 0",
        "answer, 64 tokens",
    ):
        assert words in shown
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert description is not None
    assert root.attrib["aria-labelledby"] == title.attrib["id"]
    assert root.attrib["aria-describedby"] == description.attrib["id"]
    assert "9.0 times sooner" in (description.text or "")
    assert root.attrib["role"] == "img"


def test_every_bar_tells_its_story_when_pointed_at() -> None:
    root = parsed([crawl("streaming")])
    stories = [bar.findtext(f"{SVG}title") for bar in by_class(root, "fetch") + by_class(root, "step")]
    assert stories[0] == "Page 0\npage, 0 s to 667 ms (667 ms)"
    assert (stories[9] or "").startswith("prefill step, 1,000 tokens, ")
    assert all(stories)


def test_merged_bars_say_how_many_they_are() -> None:
    events = tuple(Event(EventKind.SKIP, 1.0, 1.0, f"http://a/{index}", detail="404") for index in range(5))
    root = parsed([Timeline("Why?", "streaming", (*events, Event(EventKind.DONE, 9.0, 9.0)))])
    (mark,) = by_class(root, "mark skip")
    assert mark.findtext(f"{SVG}title") == "http://a/0 and 4 more\nskipped (5 times), at 1.00 s\n404"


@pytest.mark.parametrize("kind", [*EventKind])
def test_every_kind_of_event_can_be_drawn(kind: EventKind) -> None:
    assert tags(parsed([Timeline("Why?", "streaming", (Event(kind, 1.0, 2.0, "label", 5, "detail"),))])) <= DRAWN


@pytest.mark.parametrize("geometry", [WIDE, NARROW])
def test_marks_and_lines_stay_within_the_figure(geometry: Geometry) -> None:
    root = ET.fromstring(figure([crawl("streaming"), crawl("non_streaming")], geometry, "x", standalone=False))
    height = float(root.attrib["height"])
    for shape in root.iter(f"{SVG}rect"):
        if shape.get("class") != "paper":
            assert float(shape.attrib["x"]) + float(shape.attrib["width"]) <= geometry.width
            assert float(shape.attrib["y"]) + float(shape.attrib["height"]) <= height
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= geometry.width
        assert 0 <= float(text.attrib["y"]) <= height


def test_two_hundred_pages_and_two_thousand_steps_stay_a_small_figure() -> None:
    root = parsed([crawl(mode, num_pages=200, num_steps=2000) for mode in ("streaming", "non_streaming")])
    assert len(list(root.iter())) < 4000
    assert float(root.attrib["height"]) < 1000


def test_runs_with_questions_of_their_own_are_told_apart() -> None:
    shown = texts(parsed([Timeline("What?", "streaming"), Timeline("Why?", "streaming")]))
    for words in ("2 questions", "Streaming 1", "What?", "Streaming 2", "Why?"):
        assert words in shown


def test_a_long_question_is_cut_to_the_width_of_the_figure() -> None:
    several = [Timeline("What " * 50, "streaming"), Timeline("Why?", "streaming")]
    shown = texts(ET.fromstring(figure(several, NARROW, "x", standalone=False)))
    (question,) = [text for text in shown if text.startswith("What")]
    assert question.endswith("…")
    assert len(question) < 60


def test_a_first_token_before_the_final_context_has_no_ttft() -> None:
    events = (Event(EventKind.FIRST_TOKEN, 1, 1), Event(EventKind.FINAL_CONTEXT, 2, 2))
    root = parsed([Timeline("Why?", "streaming", events)])
    assert "first token 1.00 s" in texts(root)
    assert by_class(root, "bracket") == by_class(root, "wait") == []


def test_no_timeline_at_all_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        render_svg([])


def test_text_stands_behind_a_bar_before_it_or_inside_it_wherever_there_is_room() -> None:
    canvas = Canvas(200, 10)
    for bar, anchor in (((0, 10), "start"), ((150, 195), "end"), ((2, 198), "start")):
        canvas.text_at(places_beside(*bar, (0, 200)), 10, "ten chars.", "label")
        assert canvas.root[-1].text == "ten chars."
        assert canvas.root[-1].get("text-anchor") == anchor


def test_text_without_room_is_cut_where_there_is_most() -> None:
    canvas = Canvas(200, 10)
    canvas.text_at([Place(0, "start", 12), Place(5, "end", 30)], 10, "ten chars.", "label")
    assert (canvas.root[-1].text, canvas.root[-1].get("text-anchor")) == ("ten…", "end")


@pytest.mark.parametrize("room", [-5.0, 0.0, 3.0])
def test_where_there_is_no_room_at_all_nothing_is_written(room: float) -> None:
    assert Canvas(200, 10).cut(HOSTILE[0], room) == ""
