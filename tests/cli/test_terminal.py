from __future__ import annotations

import asyncio
import io
from contextlib import suppress

import pytest
from rich.console import Console

from stream2llm_rag.cli.terminal import Pages, Terminal, running
from stream2llm_rag.timeline import Event, EventKind

CURSOR_IS_BACK = "\x1b[?25h"  # what a display that moves writes at its end


def console(is_terminal: bool = False, width: int = 60) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, color_system=None)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def fetched(label: str) -> Event:
    return Event(EventKind.FETCH, 0.5, 1.5, label)


def test_where_no_terminal_shows_it_nothing_moves_and_pages_are_plain_lines() -> None:
    notes = console()
    with Pages(notes, max_pages=3) as pages:
        pages(fetched("One"))
        pages(Event(EventKind.COMPUTED, 1, 2, tokens=100))
        pages(Event(EventKind.RETRIEVAL_STEP, 1, 2, "Two", detail="retry"))
        pages(Event(EventKind.SKIP, 2, 3, "Two", detail="HTTP 404"))
    assert shown(notes) == "  1.50 s  One\n  3.00 s  Two skipped: HTTP 404\n"


def test_a_terminal_has_a_bar_until_the_last_retrieval_has_ended() -> None:
    notes = console(is_terminal=True)
    with Pages(notes, max_pages=3, num_retrievals=2) as pages:
        pages(fetched("One"))
        pages(Event(EventKind.FINAL_CONTEXT, 2, 2))
        assert not shown(notes).endswith(CURSOR_IS_BACK)
        pages(Event(EventKind.FINAL_CONTEXT, 3, 3))
        assert CURSOR_IS_BACK in shown(notes)
    assert "1/6" in shown(notes)
    assert "Read One" in shown(notes)


def test_a_long_title_takes_one_line() -> None:
    notes = console(width=30)
    with Pages(notes, max_pages=1) as pages:
        pages(fetched("x" * 500))
    assert shown(notes).count("\n") == 1
    assert len(shown(notes)) == 31


@pytest.mark.parametrize(("is_terminal", "num_lines"), [(True, 3), (False, 1)])
def test_notes_are_wrapped_for_eyes_and_not_for_programs(is_terminal: bool, num_lines: int) -> None:
    notes = console(is_terminal)
    Terminal(console(), notes).note("word " * 30)
    assert shown(notes).count("\n") == num_lines


class Engine:
    """Starts when it is told to, whoever is cancelled meanwhile, as the real one does."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.may_start = asyncio.Event()
        self.is_starting = asyncio.Event()
        self.is_open = False
        self._failure = failure

    async def __aenter__(self) -> Engine:
        self.is_starting.set()
        waiting = asyncio.ensure_future(self.may_start.wait())
        with suppress(asyncio.CancelledError):
            await asyncio.shield(waiting)
        await waiting
        if self._failure is not None:
            raise self._failure
        self.is_open = True
        return self

    async def aclose(self) -> None:
        self.is_open = False


async def test_an_engine_ends_with_its_block() -> None:
    engine, notes = Engine(), console(is_terminal=True)
    engine.may_start.set()
    async with running(engine, notes, "[red]tiny\x1b[2J"):
        assert engine.is_open
    assert not engine.is_open
    assert "Starting the engine with [red]tiny" in shown(notes)
    assert "\x1b[2J" not in shown(notes)


async def test_an_engine_that_fails_to_start_says_why() -> None:
    engine = Engine(ValueError("no memory"))
    engine.may_start.set()
    with pytest.raises(ValueError, match="no memory"):
        async with running(engine, console(), "tiny"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize("failure", [None, ValueError("killed")])
async def test_who_stops_while_it_starts_is_told_what_it_waits_for(failure: Exception | None) -> None:
    engine, notes = Engine(failure), console(is_terminal=True)

    async def start() -> None:
        async with running(engine, notes, "tiny"):
            pytest.fail("the block must not run")

    task = asyncio.create_task(start())
    await engine.is_starting.wait()
    task.cancel()
    while "Stopping" not in shown(notes):  # noqa: ASYNC110 - a display refreshes by the clock
        await asyncio.sleep(0.01)
    assert not task.done()
    engine.may_start.set()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert not engine.is_open
