"""``stream2llm demo``"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stream2llm_rag.cli.options import EngineArgs, JsonFile, parse_engine_args, write, write_json
from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.cli.terminal import Pages, Terminal, running, spinner
from stream2llm_rag.cli.timeline import draw
from stream2llm_rag.demo import (
    TOPICS,
    Answers,
    ChosenModel,
    DocumentationServer,
    Experiment,
    Report,
    Settings,
    Topic,
    choose_model,
)
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.retrievers.base import require_question
from stream2llm_rag.timeline import render_html
from stream2llm_rag.timeline.text import clean
from stream2llm_rag.tiny_model import default_cache_dir

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ANSWER_CHARACTERS = 300
_DEFAULTS = Settings()


def demo(
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model that vLLM can load. Default: a tiny one with random weights.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help=f"What to ask first.  [default: {TOPICS[0].question}]")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, max=len(TOPICS), help="How many questions at once.")] = 1,
    max_pages: Annotated[int, typer.Option(min=2, help="How many pages are read for each question.")] = _DEFAULTS.max_pages,
    delay_s: Annotated[float, typer.Option(min=0, help="Seconds between the requests of a crawl.")] = _DEFAULTS.delay_s,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    engine_arg: EngineArgs = None,
    json_file: JsonFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Where the page with the timelines goes.")
    ] = None,
) -> None:
    """Answer a question over a live crawl, then the usual way over the same pages at the same moments, and compare.

    Python's own documentation server is crawled: no internet is needed. Exit code 1 where the two answers are not equal, or a
    control that must differ does not.
    """
    first = TOPICS[0] if question is None else replace(TOPICS[0], question=require_question(question))
    topics = (first, *TOPICS[1:concurrency])
    settings = Settings(max_pages, delay_s, sampling={"temperature": 0, "max_tokens": max_tokens})
    engine_args = parse_engine_args(engine_arg)
    with quiet_terminal() as terminal:
        page = (out or default_cache_dir() / "demo") / "timeline.html"
        with spinner(terminal.notes, "Getting the model"):
            chosen = choose_model(model, settings)
        answers = asyncio.run(_measure(chosen, topics, engine_args, terminal))
        report = Report(chosen.label, answers, str(page.resolve()))
        write(page, render_html(report.timelines))
        write_json(json_file, report.to_json())
        _show(report, chosen, terminal.out)
    if not report.holds:
        raise typer.Exit(1)


async def _measure(
    chosen: ChosenModel, topics: Sequence[Topic], engine_args: Mapping[str, Any], terminal: Terminal
) -> tuple[Answers, ...]:
    engine = Stream2LLMEngine(chosen.name, **{**chosen.engine_args, **engine_args})
    async with (
        running(engine, terminal.notes, chosen.label),
        DocumentationServer() as server,
        Experiment(engine, server, topics, chosen.settings) as experiment,
    ):
        return await _carry_out(experiment, server, topics, chosen.settings, terminal)


async def _carry_out(
    experiment: Experiment, server: DocumentationServer, topics: Sequence[Topic], settings: Settings, terminal: Terminal
) -> tuple[Answers, ...]:
    """The steps of the experiment, each announced."""
    for topic in topics:
        terminal.note(topic.question, "bold")
    with spinner(terminal.notes, "Warming up: one request each way, so that neither run pays what only the first one costs"):
        await experiment.warm_up()
    terminal.note(
        f"Crawling {', '.join(server.page(topic.module) for topic in topics)}: up to {settings.max_pages} pages, one request "
        f"at a time, {settings.delay_s:g} s apart. What comes streams into the engine, and is recorded."
    )
    with Pages(terminal.notes, settings.max_pages, num_retrievals=len(topics)) as pages:
        streamed = await experiment.stream(lambda _, event: pages(event))
    words = "Prefix cache reset. Replaying the same pages at the same moments, the usual way: retrieve all, then submit."
    terminal.note(words)
    with spinner(terminal.notes, "Replaying"):
        usual = await experiment.replay()
    terminal.note("Prefix cache reset. Once more with the last page left out: a control, whose answer must differ.")
    with spinner(terminal.notes, "Answering"):
        control = await experiment.control(usual)
    return tuple(map(Answers, streamed, usual, control))


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
