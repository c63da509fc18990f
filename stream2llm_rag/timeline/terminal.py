"""A timeline as text: the same lanes as in the picture, one character per column of time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import ceil
from operator import itemgetter

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline.curves import Point, level_at
from stream2llm_rag.timeline.events import EventKind, Timeline
from stream2llm_rag.timeline.lanes import Lane, Span
from stream2llm_rag.timeline.layout import Detail, Panel, lay_out
from stream2llm_rag.timeline.measures import comparison, seconds
from stream2llm_rag.timeline.text import num_columns, shorten
from stream2llm_rag.timeline.words import NAMES, figures, headings, title_of

MIN_WIDTH = 40
_MAX_LANES = 16
_LEVELS = " ▁▂▃▄▅▆▇█"

# SGR codes of ECMA-48: the eight basic colours, which every theme sets for its own background.
_BOLD, _RED, _GREEN, _YELLOW, _BLUE, _FAINT = "1", "31", "32", "33", "34", "2"
_MARKS = {
    EventKind.RETRIEVAL_STEP: ("·", _FAINT),
    EventKind.SKIP: ("✗", _FAINT),
    EventKind.DELTA: ("▼", _YELLOW),
    EventKind.DEADLINE: ("◆", _RED),
    EventKind.RETRIEVAL_FAILED: ("✗", _RED),
    EventKind.EVICTED: ("▲", _RED),
    EventKind.INVALIDATED: ("✗", _RED),
    EventKind.RESUMED: ("▼", _BLUE),
    EventKind.ABORTED: ("✗", _RED),
}


def render_terminal(timelines: Sequence[Timeline], width: int = 100, color: bool = False) -> str:
    """``timelines`` under each other in lines of at most ``width`` columns; ANSI colours where ``color``.

    Raises :class:`InvalidInputError` where there is no timeline, and for a width below 40.
    """
    if width < MIN_WIDTH:
        raise InvalidInputError(f"width is {width}. Write at least {MIN_WIDTH} columns.")
    drawing = _Drawing(timelines, width, color)
    return "\n".join(drawing.lines())


class _Drawing:
    """Lines of text: a name of ``_gutter`` columns, then a character for each of the ``_plot`` columns of time."""

    def __init__(self, timelines: Sequence[Timeline], width: int, color: bool) -> None:
        self._gutter = min(28, width // 3)
        self._plot = width - self._gutter - 1
        detail = Detail(self._plot, mark_columns=1, max_lanes=_MAX_LANES, max_ticks=max(3, self._plot // 12))
        self._layout = lay_out(timelines, detail)
        self._timelines = timelines
        self._width = width
        self._color = color

    def lines(self) -> Iterator[str]:
        """The whole picture from top to bottom."""
        yield self._paint(shorten(title_of(self._timelines), self._width), _BOLD)
        yield from self._wrapped(comparison(self._timelines) or "")
        for (title, subtitle), panel in zip(headings(self._timelines), self._layout.panels, strict=True):
            yield ""
            yield self._paint(title, _BOLD) + shorten(f": {subtitle}", self._width - len(title))
            yield from self._panel(panel)

    def _panel(self, panel: Panel) -> Iterator[str]:
        yield from self._wrapped(", ".join(self._key(panel)))
        for index, lane in enumerate(panel.fetches):
            name = ("pages" if index == 0 else "") if panel.packed else lane.spans[0].label
            yield self._row(panel, name, self._bars(lane.spans, "━"), _YELLOW)
        yield from self._instants(panel, panel.retrieval_instants)
        yield self._row(panel, "prefill", self._bars(panel.steps.spans, "█"), _BLUE)
        yield from self._instants(panel, panel.engine_instants)
        yield self._row(panel, "tokens handed over", self._curve(panel.handed_over), _YELLOW)
        yield self._row(panel, "tokens in the KV cache", self._curve(panel.computed), _BLUE)
        if panel.decode:
            yield self._row(panel, "answer", self._bars([panel.decode], "━"), _GREEN)
        yield self._axis()
        yield from self._wrapped(" · ".join(figures(panel.timeline)))

    def _key(self, panel: Panel) -> Iterator[str]:
        """What the two vertical lines are."""
        if panel.final_context_s is not None:
            yield f"┊ final context {seconds(panel.final_context_s)}"
        if panel.first_token_s is not None:
            yield f"│ first token {seconds(panel.first_token_s)}"

    def _instants(self, panel: Panel, lanes: Iterable[Lane]) -> Iterator[str]:
        for lane in lanes:
            mark, style = _MARKS[lane.kind]
            yield self._row(panel, NAMES[lane.kind], {self._column(span.start_s): mark for span in lane.spans}, style)

    def _bars(self, spans: Iterable[Span], bar: str) -> dict[int, str]:
        columns = (range(self._column(span.start_s), self._column(span.end_s) + 1) for span in spans)
        return {column: bar for covered in columns for column in covered}

    def _curve(self, points: Sequence[Point]) -> dict[int, str]:
        end_s, highest = self._layout.axis.end_s, self._layout.max_tokens
        levels = (level_at(points, (column + 1) / self._plot * end_s) / highest for column in range(self._plot))
        return {column: _LEVELS[ceil(level * (len(_LEVELS) - 1))] for column, level in enumerate(levels) if level > 0}

    def _row(self, panel: Panel, name: str, drawn: dict[int, str], style: str) -> str:
        """A lane: its name in the gutter, what is drawn by column, and behind it the lines of the milestones."""
        cells = dict.fromkeys(range(self._plot), (" ", ""))
        for at_s, line in ((panel.final_context_s, ("┊", _FAINT)), (panel.first_token_s, ("│", _GREEN))):
            if at_s is not None:
                cells[self._column(at_s)] = line
        cells |= {column: (character, style) for column, character in drawn.items()}
        runs = groupby(cells.values(), key=itemgetter(1))
        plot = "".join(self._paint("".join(character for character, _ in run), code) for code, run in runs)
        return f"{self._fitted(name)} {plot}"

    def _fitted(self, name: str) -> str:
        name = shorten(name, self._gutter)
        return name + " " * (self._gutter - num_columns(name))

    def _axis(self) -> str:
        line = " " * (self._gutter + 1)
        for tick in self._layout.axis.ticks_s:
            column = self._gutter + 1 + self._column(tick)
            if column >= len(line):
                line = line.ljust(column) + f"{tick:g} s "
        return self._paint(line[: self._width].rstrip(), _FAINT)

    def _wrapped(self, words: str) -> Iterator[str]:
        return (shorten(line, self._width) for line in textwrap.wrap(words, self._width))

    def _column(self, at_s: float) -> int:
        return min(self._plot - 1, int(at_s / self._layout.axis.end_s * self._plot))

    def _paint(self, words: str, code: str) -> str:
        return f"\x1b[{code}m{words}\x1b[0m" if self._color and code else words
