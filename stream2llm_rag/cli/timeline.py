"""``stream2llm timeline``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stream2llm_rag.cli.options import HtmlFile, SvgFile, write
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.timeline import Timeline, render_html, render_svg, render_terminal, timelines_from_json
from stream2llm_rag.timeline.terminal import MIN_WIDTH

StoredFile = Annotated[
    Path, typer.Argument(metavar="FILE.json", help="What ask or demo wrote with --json.", exists=True, dir_okay=False)
]


def timeline(file: StoredFile, html: HtmlFile = None, svg: SvgFile = None) -> None:
    """Draw what happened when: here, and as a page or a picture where a file is named."""
    timelines = read_timelines(file)
    draw(Console(), timelines)
    if html is not None:
        write(html, render_html(timelines))
    if svg is not None:
        write(svg, render_svg(timelines))


def read_timelines(file: Path) -> tuple[Timeline, ...]:
    """The timelines that a file holds: alone, in a list, or under the key ``timelines``. InvalidInputError for other files."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read: {error}. Name a file that ask or demo wrote with --json.") from error
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = None  # said better by what reads timelines
    if isinstance(stored, dict) and "timelines" in stored:
        text = json.dumps(stored["timelines"])
    return timelines_from_json(text)


def draw(console: Console, timelines: tuple[Timeline, ...]) -> None:
    """Lanes as wide as the console."""
    color = console.is_terminal and not console.no_color
    console.file.write(render_terminal(timelines, max(MIN_WIDTH, console.width), color) + "\n")
