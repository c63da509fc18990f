"""A timeline as one HTML page that needs nothing else: figure, table of measures, and every event in a table.

The page allows its own script and styles and nothing else, by their hashes in a Content-Security-Policy: markup that got past
the escaping could neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape as escape_markup
from importlib.resources import files

from stream2llm_rag.timeline.events import Event, Timeline, timelines_to_json
from stream2llm_rag.timeline.measures import comparison, count, name_of, table, value_of
from stream2llm_rag.timeline.svg import NARROW, WIDE, figure, figure_css
from stream2llm_rag.timeline.text import clean
from stream2llm_rag.timeline.words import NAMES, headings, interval, title_of

_EVENT_COLUMNS = ("When", "What", "Tokens", "Of", "Detail")


def render_html(timelines: Sequence[Timeline], title: str | None = None) -> str:
    """A self-contained page of ``timelines``, titled with their question where ``title`` is None.

    Raises :class:`~stream2llm_rag.errors.InvalidInputError` where there is no timeline.
    """
    wide, narrow = (figure(timelines, size, name, standalone=False) for size, name in ((WIDE, "wide"), (NARROW, "narrow")))
    runs = [title for title, _ in headings(timelines)]
    styles = {"page_css": _asset("page.css"), "figure_css": figure_css()}
    script = _asset("page.js")
    return _asset("page.html").format(
        policy=_policy(script, styles.values()),
        title=_escape(title_of(timelines) if title is None else title),
        finding=_escape(comparison(timelines) or ""),
        wide=wide,
        narrow=narrow,
        runs="".join(f'<th scope="col">{run}</th>' for run in runs),
        measures=_measures(timelines),
        events="\n".join(map(_events, runs, timelines)),
        data=_inert(timelines_to_json(timelines)),
        script=script,
        **styles,
    )


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text("utf-8")


def _policy(script: str, styles: Iterable[str]) -> str:
    allowed = f"script-src {_hash(script)}; style-src {' '.join(map(_hash, styles))}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(inline: str) -> str:
    """The source expression that allows an inline element with exactly this content (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


def _escape(text: str) -> str:
    return escape_markup(clean(text))


def _inert(json: str) -> str:
    """JSON that can neither end the script element that holds it nor open another (HTML Standard, section 4.12.1.3)."""
    return json.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _measures(timelines: Sequence[Timeline]) -> str:
    return "\n".join(_measure(name, values) for name, values in table(timelines).items())


def _measure(name: str, values: Iterable[float | int | None]) -> str:
    shown = ("" if value is None else value_of(name, value) for value in values)
    cells = "".join(f'<td class="number">{value}</td>' for value in shown)
    return f'<tr><th scope="row">{_escape(name_of(name))}</th>{cells}</tr>'


def _events(title: str, timeline: Timeline) -> str:
    """Every event of one run, for those who read rather than look."""
    head = "".join(f'<th scope="col">{name}</th>' for name in _EVENT_COLUMNS)
    rows = "\n".join(map(_event, timeline.events))
    summary = f"{title}: all {count(len(timeline.events))} events"
    body = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    return f'<details><summary>{summary}</summary><div class="scroll">{body}</div></details>'


def _event(event: Event) -> str:
    tokens = "" if event.tokens is None else count(event.tokens)
    words = "".join(f"<td><bdi>{_escape(text)}</bdi></td>" for text in (event.label, event.detail or ""))
    when = interval(event.start_s, event.end_s)
    return f'<tr><td>{when}</td><td>{NAMES[event.kind]}</td><td class="number">{tokens}</td>{words}</tr>'
