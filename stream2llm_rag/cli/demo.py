"""``stream2llm demo``"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stream2llm_rag.cache_dir import default_cache_dir
from stream2llm_rag.cli.options import EngineArgs, JsonFile, parse_engine_args, write, write_json
from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.cli.terminal import Pages, Terminal, running, spinner
from stream2llm_rag.cli.timeline import draw
from stream2llm_rag.demo import (
    TOPICS,
    Answers,
    ChosenModel,
    DocumentationIndex,
    DocumentationServer,
    Experiment,
    Report,
    Settings,
    Source,
    Topic,
    choose_model,
)
from stream2llm_rag.demo.corpus import open_or_build_index
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import require_question
from stream2llm_rag.timeline import render_html
from stream2llm_rag.timeline.text import clean

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ANSWER_CHARACTERS = 300
_DEFAULTS = Settings()


class Mode(StrEnum):
    """How the context comes: page after page, or as a list that is refined."""

    APPEND = "append"
    UPDATE = "update"


_DELAYS_S = {Mode.APPEND: _DEFAULTS.delay_s, Mode.UPDATE: 0.1}


def demo(
    mode: Annotated[
        Mode, typer.Option(help="`append`: a crawl brings page after page. `update`: a vector search refines its list.")
    ] = Mode.APPEND,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model that vLLM can load. Default: a tiny one with random weights.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help=f"What to ask first.  [default: {TOPICS[0].question}]")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, max=len(TOPICS), help="How many questions at once.")] = 1,
    max_pages: Annotated[
        int, typer.Option(min=2, help="How many pages are read, or found, for each question.")
    ] = _DEFAULTS.max_pages,
    delay_s: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds between the requests of a crawl, or that each hop of a search takes longer, as over a slow store."
            f"  [default: {_DELAYS_S[Mode.APPEND]:g}, update: {_DELAYS_S[Mode.UPDATE]:g}]",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    engine_arg: EngineArgs = None,
    json_file: JsonFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Where the page with the timelines goes.")
    ] = None,
) -> None:
    """Answer a question over live retrieval, then the usual way over the same documents at the same moments, and compare.

    Python's own documentation is crawled, or indexed and searched: no internet is needed. Exit code 1 where the two answers
    are not equal, or a control that must differ does not.
    """
    first = TOPICS[0] if question is None else replace(TOPICS[0], question=require_question(question))
    topics = (first, *TOPICS[1:concurrency])
    settings = Settings(
        max_pages, _DELAYS_S[mode] if delay_s is None else delay_s, sampling={"temperature": 0, "max_tokens": max_tokens}
    )
    engine_args = parse_engine_args(engine_arg)
    with quiet_terminal() as terminal:
        page = (out or default_cache_dir() / "demo") / "timeline.html"
        with spinner(terminal.notes, "Getting the model"):
            chosen = choose_model(model, settings)
        answers = asyncio.run(_measure(chosen, mode, topics, engine_args, terminal))
        report = Report(chosen.label, answers, str(page.resolve()))
        write(page, render_html(report.timelines))
        write_json(json_file, report.to_json())
        _show(report, chosen, terminal.out)
    if not report.holds:
        raise typer.Exit(1)


async def _measure(
    chosen: ChosenModel, mode: Mode, topics: Sequence[Topic], engine_args: Mapping[str, Any], terminal: Terminal
) -> tuple[Answers, ...]:
    async with (
        _source(mode, terminal) as source,
        running(Stream2LLMEngine(chosen.name, **{**chosen.engine_args, **engine_args}), terminal.notes, chosen.label) as engine,
        Experiment(engine, source, topics, chosen.settings) as experiment,
    ):
        return await _carry_out(experiment, mode, topics, chosen.settings, terminal)


@asynccontextmanager
async def _source(mode: Mode, terminal: Terminal) -> AsyncIterator[Source]:
    if mode is Mode.APPEND:
        async with DocumentationServer() as server:
            yield server
    else:
        with spinner(terminal.notes, "Indexing Python's documentation, which is done once"):
            directory = await asyncio.to_thread(open_or_build_index)
        yield DocumentationIndex(directory)


def _announcement(mode: Mode, topics: Sequence[Topic], settings: Settings) -> str:
    if mode is Mode.APPEND:
        names = ", ".join(topic.module for topic in topics)
        return (
            f"Crawling the documentation, from {names}: up to {settings.max_pages} pages, one request at a time, "
            f"{settings.delay_s:g} s apart. What comes streams into the engine, and is recorded."
        )
    return (
        f"Searching the documentation for the {settings.max_pages} nearest sections, {settings.delay_s:g} s slower at each "
        "hop. What will most likely stay streams into the engine, and is recorded."
    )


async def _carry_out(
    experiment: Experiment, mode: Mode, topics: Sequence[Topic], settings: Settings, terminal: Terminal
) -> tuple[Answers, ...]:
    """The steps of the experiment, each announced."""
    for topic in topics:
        terminal.note(topic.question, "bold")
    with spinner(terminal.notes, "Warming up: one request each way, so that neither run pays what only the first one costs"):
        await experiment.warm_up()
    terminal.note(_announcement(mode, topics, settings))
    num_expected = settings.max_pages if mode is Mode.APPEND else None
    with Pages(terminal.notes, num_expected, num_retrievals=len(topics)) as pages:
        streamed = await experiment.stream(lambda _, event: pages(event))
    words = "Prefix cache reset. Replaying the same at the same moments, the usual way: retrieve all, then submit."
    terminal.note(words)
    with spinner(terminal.notes, "Replaying"):
        usual = await experiment.replay()
    by_rank: Sequence[RAGResult | None] = [None] * len(topics)
    if mode is Mode.UPDATE:
        terminal.note("Prefix cache reset. Replaying and streaming once more, with the documents in the order of their rank.")
        with spinner(terminal.notes, "Replaying"):
            by_rank = await experiment.stream_by_rank()
    terminal.note("Prefix cache reset. Once more with the last document left out: a control, whose answer must differ.")
    with spinner(terminal.notes, "Answering"):
        control = await experiment.control(usual)
    return tuple(map(Answers, streamed, usual, control, by_rank))


def _show(report: Report, chosen: ChosenModel, out: Console) -> None:
    if len(report.answers) == 1:
        out.print()
        draw(out, report.timelines)
    out.print()
    out.print(_table(report))
    out.print()
    for finding in report.findings():
        sign = ("✓ ", "green") if finding.is_good else ("✗ ", "bold red")
        out.print(Text.assemble(sign, finding.text))
    out.print(Text(f"Answer: {clean(report.answers[0].streamed.text, _MAX_ANSWER_CHARACTERS)}", "dim"))
    if chosen.is_noise:
        out.print(Text("The model's weights are random, so this text is noise. The times and the equality are real."))
    out.print(Text(f"Timeline: {Path(report.timeline_html).as_uri()}"), soft_wrap=True)


def _table(report: Report) -> Table:
    measured = "Median" if len(report.answers) > 1 else ""
    table = Table(measured, "Streaming", "The usual way", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report.rows():
        table.add_row(*row)
    return table
