"""A timeline as SVG: what comes in above, what the engine does with it below, on one axis for all runs.

Colours live in ``assets/figure.css``, light and dark; they are written out for each scheme rather than as variables, which
converters to PDF do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from xml.etree import ElementTree as ET

from stream2llm_rag.timeline.canvas import Canvas, places_beside
from stream2llm_rag.timeline.curves import Point
from stream2llm_rag.timeline.events import EventKind, Timeline
from stream2llm_rag.timeline.lanes import Lane, Span
from stream2llm_rag.timeline.layout import Detail, Layout, Panel, lay_out
from stream2llm_rag.timeline.measures import comparison, count, seconds
from stream2llm_rag.timeline.text import clean
from stream2llm_rag.timeline.words import NAMES, describe, headings, title_of, tooltip


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a figure in px of its own; the time axis begins after ``gutter`` and ends ``margin`` before the edge."""

    width: int
    gutter: int
    margin: int
    font: int
    chart: int
    max_ticks: int

    @property
    def plot(self) -> int:
        """Width of the time axis."""
        return self.width - self.gutter - self.margin

    @property
    def row(self) -> int:
        """Height of a lane that holds text."""
        return self.font + 5


WIDE = Geometry(width=1200, gutter=96, margin=24, font=12, chart=96, max_ticks=12)
NARROW = Geometry(width=400, gutter=80, margin=14, font=11, chart=72, max_ticks=5)

_MAX_LANES = 16
_MARK = 8  # px: what the mark of an instant takes
_PACKED = 8  # px: height of a lane without text


def render_svg(timelines: Sequence[Timeline]) -> str:
    """A stand-alone SVG document of ``timelines`` under each other.

    Raises :class:`~stream2llm_rag.errors.InvalidInputError` where there is none.
    """
    return figure(timelines, WIDE, "timeline", standalone=True)


def figure(timelines: Sequence[Timeline], geometry: Geometry, identity: str, *, standalone: bool) -> str:
    """``timelines`` as one ``<svg>``; a ``standalone`` one brings its style and a heading. ``identity`` prefixes its ids."""
    layout = lay_out(timelines, Detail(geometry.plot, _MARK, _MAX_LANES, geometry.max_ticks))
    drawing = _Drawing(layout, geometry)
    if standalone:
        drawing.heading(timelines)
    for (title, subtitle), panel in zip(headings(timelines), layout.panels, strict=True):
        drawing.title(title, subtitle)
        drawing.panel(panel)
    style = figure_css() if standalone else ""
    return drawing.canvas.finish(drawing.y, identity, "Retrieval and prefill over time", describe(timelines), style)


def figure_css() -> str:
    """The style sheet of figures, for a page that holds some."""
    return (files(__package__) / "assets" / "figure.css").read_text("utf-8")


class _Drawing:
    """A figure drawn from top to bottom; ``y`` is how far it has come."""

    def __init__(self, layout: Layout, size: Geometry) -> None:
        self.canvas = Canvas(size.width, size.font)
        self.y = 6.0
        self._layout = layout
        self._size = size
        self._bounds = (float(size.gutter), float(size.width - 4))

    def heading(self, timelines: Sequence[Timeline]) -> None:
        self.y += 24
        question = self.canvas.cut(title_of(timelines), self._size.width - 2 * self._size.margin, 6)
        self.canvas.text(self._size.margin, self.y, question, "heading", enlarged=6)
        if sentence := comparison(timelines):
            self.y += 20
            self.canvas.text(self._size.margin, self.y, sentence, "muted", enlarged=1)
        self.y += 10

    def title(self, title: str, subtitle: str) -> None:
        left = self._size.margin
        self.y += self._size.row + 2
        self.canvas.text(left, self.y, title, "heading", enlarged=2)
        left += int(self.canvas.length(title, 2)) + 20
        self.canvas.text(left, self.y, self.canvas.cut(subtitle, self._bounds[1] - left), "muted")
        self.y += 6

    def panel(self, panel: Panel) -> None:
        back, top = self.canvas.group(), self.y
        self._milestones(panel)
        for index, lane in enumerate(panel.fetches):
            self._pages(lane, panel.packed, "pages" if index == 0 else "")
        for lane in panel.retrieval_instants:
            self._instants(lane)
        self.y += 8
        self._engine(panel)
        for lane in panel.engine_instants:
            self._instants(lane)
        self.y += 6
        self._chart(panel)
        self._backdrop(panel, back, top)
        self._ticks()
        self.y += 16

    def _milestones(self, panel: Panel) -> None:
        """The final context and the first token, with a bracket over the wait between them, which TTFT counts."""
        final, token = panel.final_context_s, panel.first_token_s
        if final is not None:
            self.y += self._size.row
            behind, before, _ = places_beside(self._x(final), self._x(final), self._bounds)
            self.canvas.text_at((before, behind), self.y, f"final context {seconds(final)}", "muted")
        if token is not None:
            self.y += self._size.row
            start, words = token, f"first token {seconds(token)}"
            if final is not None and final <= token:
                start, words = final, f"TTFT {seconds(token - final)} · {words}"
                middle = self.y - self._size.font / 3
                ends = f"M{self._x(final):.1f} {middle - 4:.1f}v8M{self._x(token):.1f} {middle - 4:.1f}v8"
                self.canvas.path(f"{ends}M{self._x(final):.1f} {middle:.1f}H{self._x(token):.1f}", "bracket")
            self.canvas.text_at(places_beside(self._x(start), self._x(token), self._bounds)[:2], self.y, words, "strong")
        self.y += 8

    def _pages(self, lane: Lane, packed: bool, name: str) -> None:
        height = _PACKED if packed else self._size.row
        self._name(name, self._size.row)
        for span in lane.spans:
            self._bar(span, height, "fetch")
            if not packed:
                places = places_beside(self._x(span.start_s), self._x(span.end_s), self._bounds)
                self.canvas.text_at(places, self.y + height - 5, clean(span.label), "label")
        self.y += height + 2

    def _instants(self, lane: Lane) -> None:
        height = self._size.font + 2
        self._name(NAMES[lane.kind], height)
        for span in lane.spans:
            commands = _mark(lane.kind, self._x(span.start_s), self.y + height / 2)
            self.canvas.path(commands, f"mark {lane.kind}", tip=tooltip(span))
        self.y += height

    def _engine(self, panel: Panel) -> None:
        self._name("prefill", self._size.row)
        if panel.decode:
            self._bar(panel.decode, self._size.row, f"decode {panel.decode.kind}")
            self._answer(panel.decode)
        for span in panel.steps.spans:
            self._bar(span, self._size.row, "step")
        self.y += self._size.row + 2

    def _answer(self, decode: Span) -> None:
        """Say in the bar of the answer what it is, as far as it has the room."""
        *_, inside = places_beside(self._x(decode.start_s), self._x(decode.end_s), self._bounds)
        tokens = "" if decode.tokens is None else f", {count(decode.tokens)} tokens"
        fitting = (words for words in (f"answer{tokens}", "answer", "") if self.canvas.length(words) <= max(inside.room, 0))
        self.canvas.text_at([inside], self.y + self._size.row - 5, next(fitting), "inside")

    def _chart(self, panel: Panel) -> None:
        """How long the context is, and how much of it the engine has computed."""
        base = self.y + self._size.chart
        scale = (self._size.chart - 8) / self._layout.max_tokens
        for tokens in (0, self._layout.max_tokens):
            level = base - tokens * scale
            self.canvas.path(f"M{self._size.gutter} {level:.1f}h{self._size.plot}", "grid")
            self.canvas.text(self._size.gutter - 6, level + 4, count(tokens), "muted", anchor="end")
        self._name("tokens", self._size.chart)
        computed = self._curve(panel.computed, base, scale)
        self.canvas.path(f"{computed}V{base:.1f}H{self._size.gutter}Z", "computed")
        self.canvas.path(self._curve(panel.handed_over, base, scale), "handed-over")
        self._key()
        self.y = base

    def _curve(self, points: Sequence[Point], base: float, scale: float) -> str:
        return "M" + "L".join(f"{self._x(point.at_s):.1f} {base - point.tokens * scale:.1f}" for point in points)

    def _key(self) -> None:
        """Names of the two curves, in the corner that they leave free."""
        x, y = self._size.gutter + 8, self.y + self._size.row
        self.canvas.path(f"M{x} {y - 4:.1f}h16", "handed-over")
        self.canvas.text(x + 22, y, "context handed over", "label")
        self.canvas.rectangle(x, y + self._size.row - 9, (16, 9), "computed")
        self.canvas.text(x + 22, y + self._size.row, "in the KV cache", "label")

    def _backdrop(self, panel: Panel, back: ET.Element, top: float) -> None:
        for tick in self._layout.axis.ticks_s:
            self.canvas.path(f"M{self._x(tick):.1f} {top:.1f}V{self.y:.1f}", "grid", into=back)
        final, token = panel.final_context_s, panel.first_token_s
        if final is not None and token is not None and final <= token:
            size = (self._x(token) - self._x(final), self.y - top)
            self.canvas.rectangle(self._x(final), top, size, "wait", into=back)
        for at_s, style in ((final, "final-context"), (token, "first-token")):
            if at_s is not None:
                self.canvas.path(f"M{self._x(at_s):.1f} {top:.1f}V{self.y:.1f}", style, into=back)

    def _ticks(self) -> None:
        self.y += self._size.row
        for tick in self._layout.axis.ticks_s:
            self.canvas.text(self._x(tick), self.y, f"{tick:g} s", "muted", anchor="middle")

    def _name(self, name: str, height: float) -> None:
        """Write the name of a lane of ``height`` into the gutter."""
        if name:
            self.canvas.text(self._size.gutter - 6, self.y + height / 2 + 4, name, "muted", anchor="end")

    def _bar(self, span: Span, height: float, style: str) -> None:
        left = self._x(span.start_s)
        width = max(1.5, self._x(span.end_s) - left)
        self.canvas.rectangle(left, self.y, (width, height), style, tip=tooltip(span))

    def _x(self, at_s: float) -> float:
        return self._size.gutter + self._size.plot * at_s / self._layout.axis.end_s


def _mark(kind: EventKind, x: float, y: float) -> str:
    """A path for an instant: pointing down to the engine, up out of its cache, back into it, or a cross for what failed."""
    half = _MARK / 2
    if kind in (EventKind.DELTA, EventKind.RESUMED):
        return f"M{x - half:.1f} {y - half:.1f}h{_MARK}L{x:.1f} {y + half:.1f}Z"
    if kind is EventKind.EVICTED:
        return f"M{x - half:.1f} {y + half:.1f}h{_MARK}L{x:.1f} {y - half:.1f}Z"
    if kind is EventKind.RETRIEVAL_STEP:
        return f"M{x:.1f} {y - half:.1f}v{_MARK}"
    if kind is EventKind.DEADLINE:
        return f"M{x:.1f} {y - half:.1f}l{half} {half}l-{half} {half}l-{half}-{half}Z"
    return f"M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"
