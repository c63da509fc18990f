"""An SVG being drawn: shapes and text by class, in an element tree that escapes whatever it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from stream2llm_rag.timeline.text import num_columns, shorten

_CHARACTER_EM = 0.58  # mean width of a character in units of the font's size: DejaVu Sans, the widest that is common
_GAP = 5


class Place(NamedTuple):
    """Where a text can stand: its anchor's ``x``, and how much ``room`` it has, in px."""

    x: float
    anchor: str
    room: float


class Canvas:
    """``width`` px wide and as high as the caller says at the end; ``font`` is the size of its text in px."""

    def __init__(self, width: int, font: int) -> None:
        self.root = ET.Element("svg", {"class": "s2l-figure", "role": "img"})
        self.width = width
        self.font = font

    def group(self) -> ET.Element:
        """A group at this depth of the drawing, to be filled later."""
        return ET.SubElement(self.root, "g")

    def text(self, x: float, y: float, words: str, style: str, *, anchor: str = "start", enlarged: int = 0) -> ET.Element:
        """One line of ``words`` on the baseline ``y``; ``enlarged`` is in px."""
        where = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style, "text-anchor": anchor}
        size = {"font-size": str(self.font + enlarged)} if enlarged else {}
        element = ET.SubElement(self.root, "text", where | size)
        element.text = words
        return element

    def text_at(self, places: Sequence[Place], y: float, words: str, style: str) -> None:
        """Write ``words`` at the first of ``places`` that has the room, else cut to fit the roomiest."""
        needed = self.length(words)
        place = next((place for place in places if place.room >= needed), None) or max(places, key=lambda place: place.room)
        self.text(place.x, y, self.cut(words, place.room), style, anchor=place.anchor)

    def length(self, words: str, enlarged: int = 0) -> float:
        """About how many px ``words`` take: SVG cannot measure them before a browser has them."""
        return num_columns(words) * (self.font + enlarged) * _CHARACTER_EM

    def cut(self, words: str, room: float, enlarged: int = 0) -> str:
        """As much of ``words`` as ``room`` px hold."""
        return shorten(words, int(room / self.length("x", enlarged)))

    def path(self, commands: str, style: str, *, into: ET.Element | None = None, tip: str = "") -> None:
        """A path of SVG ``commands``, with a tooltip where ``tip`` is not empty."""
        parent = self.root if into is None else into
        _tip(ET.SubElement(parent, "path", {"class": style, "d": commands}), tip)

    def rectangle(
        self, left: float, top: float, size: tuple[float, float], style: str, *, into: ET.Element | None = None, tip: str = ""
    ) -> None:
        """A rectangle of ``size`` (width, height), with a tooltip where ``tip`` is not empty."""
        box = {"x": left, "y": top, "width": size[0], "height": size[1]}
        shape = {name: f"{value:.1f}" for name, value in box.items()}
        _tip(ET.SubElement(self.root if into is None else into, "rect", {"class": style} | shape), tip)

    def finish(self, height: float, identity: str, title: str, description: str, style: str) -> str:
        """The document; its ids begin with ``identity``. ``style`` is a style sheet, or empty where the page has it."""
        heads = [ET.Element("title", {"id": f"{identity}-title"}), ET.Element("desc", {"id": f"{identity}-desc"})]
        heads[0].text, heads[1].text = title, description
        if style:
            heads.append(ET.Element("style"))
            heads[-1].text = style
        heads.append(ET.Element("rect", {"class": "paper", "width": "100%", "height": "100%"}))
        self.root[:0] = heads
        self.root.attrib |= {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {self.width} {height:.0f}",
            "width": str(self.width),
            "height": f"{height:.0f}",
            "font-size": str(self.font),
            "aria-labelledby": f"{identity}-title",
            "aria-describedby": f"{identity}-desc",
        }
        return ET.tostring(self.root, encoding="unicode")


def places_beside(left: float, right: float, bounds: tuple[float, float]) -> tuple[Place, Place, Place]:
    """Behind [left, right], before it, and inside it, so far as ``bounds`` reach; px."""
    return (
        Place(right + _GAP, "start", bounds[1] - right - _GAP),
        Place(left - _GAP, "end", left - bounds[0] - _GAP),
        Place(left + _GAP, "start", right - left - 2 * _GAP),
    )


def _tip(element: ET.Element, words: str) -> None:
    if words:
        ET.SubElement(element, "title").text = words
