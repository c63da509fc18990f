"""What a command shows while it works. Words of strangers are shown as plain text, without control characters or markup."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stream2llm_rag.timeline import Event, EventKind
from stream2llm_rag.timeline.measures import seconds
from stream2llm_rag.timeline.text import clean

if TYPE_CHECKING:
    from rich.console import Console

    from stream2llm_rag import Stream2LLMEngine

_MAX_ERROR_CHARACTERS = 4000
_MAX_TITLE_CHARACTERS = 40  # beside the bar; the line above it has the whole
_WORDS = TextColumn("{task.description}", markup=False)


@dataclass(frozen=True, slots=True)
class Terminal:
    """Results go to ``out``, the standard output; how they come about is told on ``notes``, the standard error."""

    out: Console
    notes: Console

    def note(self, words: str, style: str = "") -> None:
        """Words of our own or of strangers, on ``notes``: one line, where no terminal is too narrow for it."""
        self.notes.print(Text(clean(words, _MAX_ERROR_CHARACTERS), style), soft_wrap=not self.notes.is_terminal)


def show_error(console: Console, error: BaseException) -> None:
    """``error`` on a line, and each of its notes on another."""
    words = clean(str(error), _MAX_ERROR_CHARACTERS) or type(error).__name__
    console.print(Text.assemble(("error: ", "bold red"), words), soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        console.print(Text(clean(note)), soft_wrap=True)


@contextmanager
def spinner(console: Console, words: str) -> Iterator[Progress]:
    """``words``, something that turns, and the seconds that have passed; gone when the block ends."""
    with _progress(console, SpinnerColumn(), _WORDS, TimeElapsedColumn()) as progress:
        progress.add_task(words, total=None)
        yield progress


@contextmanager
def bar(console: Console, words: str, total: int) -> Iterator[Callable[[], None]]:
    """``words``, and a bar that each call moves by one of ``total``; gone when the block ends."""
    columns = (SpinnerColumn(), _WORDS, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with _progress(console, *columns) as progress:
        task = progress.add_task(words, total=total)
        yield lambda: progress.advance(task)


def _progress(console: Console, *columns: ProgressColumn) -> Progress:
    """What moves while a command works; nothing at all where no terminal shows it."""
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=False,  # else it shows what others print meanwhile
        redirect_stderr=False,
    )


@asynccontextmanager
async def running(engine: Stream2LLMEngine, console: Console, model: str) -> AsyncIterator[Stream2LLMEngine]:
    """Start ``engine``, and end it with the block. Both take their time, and ``console`` shows that."""
    with spinner(console, f"Starting the engine with {clean(model)}") as progress:
        starting = asyncio.ensure_future(engine.__aenter__())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            progress.update(progress.task_ids[0], description="Stopping; the engine has to have started before it can end")
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await engine.aclose()  # it may have started after all
            raise
    try:
        yield engine
    finally:
        with spinner(console, "Ending the engine"):
            await engine.aclose()


class Pages:
    """Shows the pages of ``num_retrievals`` as they come, at most ``max_pages`` of each: a line for each, and a bar below,
    with the title of the last.

    Where nobody knows how many will come (None), the bar shows only that something is under way.

    A context manager, and to be called with each event of the timelines. The bar goes when the last retrieval has ended.
    """

    def __init__(self, console: Console, max_pages: int | None, num_retrievals: int = 1) -> None:
        self._console = console
        self._num_retrievals = num_retrievals
        self._progress = _progress(console, SpinnerColumn(), _WORDS, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._task = self._progress.add_task("Retrieving", total=max_pages and max_pages * num_retrievals)

    def __enter__(self) -> Pages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show ``event`` if it is about a page."""
        match event.kind:
            case EventKind.FETCH:
                self._progress.update(self._task, advance=1, description=f"Read {clean(event.label, _MAX_TITLE_CHARACTERS)}")
                self._show(event, "")
            case EventKind.SKIP:
                self._show(event, "dim", f" skipped: {event.detail}")
            case EventKind.FINAL_CONTEXT:
                self._num_retrievals -= 1
                if self._num_retrievals == 0:
                    self._progress.stop()

    def _show(self, event: Event, style: str, remark: str = "") -> None:
        line = Text.assemble((f"{seconds(event.end_s):>8}  ", "dim"), (clean(event.label + remark), style))
        self._console.print(line, no_wrap=True, overflow="ellipsis")
