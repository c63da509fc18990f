"""``stream2llm ask``"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from stream2llm_rag.cli.options import EngineArgs, HtmlFile, JsonFile, parse_engine_args, write, write_json
from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.cli.terminal import Pages, Terminal, running
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.pipeline import DEFAULT_MAX_TOKENS, AnswerStream, StreamingRAG
from stream2llm_rag.prompt import DEFAULT_SYSTEM_PROMPT, strip_invisible
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import require_question
from stream2llm_rag.retrievers.report import CrawlReport
from stream2llm_rag.timeline import render_html, timelines_to_json
from stream2llm_rag.timeline.words import figures

if TYPE_CHECKING:
    from rich.console import Console


class Scope(StrEnum):
    """Which links a crawl follows."""

    HOST = "host"
    PREFIX = "prefix"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, of which model, over which pages."""

    question: str
    model: str
    engine_args: dict[str, Any]
    crawl: dict[str, Any]
    system_prompt: str
    sampling: dict[str, Any]
    answer_by_s: float | None
    streaming: bool


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    url: Annotated[list[str], typer.Option(metavar="URL", help="Where the crawl starts. May be given more than once.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="A model that vLLM can load: a name, or a folder.")],
    max_pages: Annotated[int, typer.Option(min=1, help="How many pages are read.")] = 12,
    max_depth: Annotated[int, typer.Option(min=0, help="How many links from the start a page may be.")] = 3,
    scope: Annotated[Scope, typer.Option(help="Follow links on the same host, below the same path, or anywhere.")] = Scope.HOST,
    allow_private_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST[:PORT]", help="A host that may be reached although it is no public one.")
    ] = None,
    delay_s: Annotated[float, typer.Option(min=0, help="Seconds between requests to the same host.")] = 0.0,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Keep pages in DIR from one crawl to the next.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(metavar="URL", help="Crawl through this HTTP proxy, also one with a private address.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = DEFAULT_MAX_TOKENS,
    temperature: Annotated[float, typer.Option(min=0, help="0 for the likeliest answer.")] = 0.0,
    answer_by_s: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which the answer is made from what is there.")
    ] = None,
    system_prompt: Annotated[str, typer.Option(metavar="TEXT")] = DEFAULT_SYSTEM_PROMPT,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="The usual way: retrieve all, then submit.")] = False,
    engine_arg: EngineArgs = None,
    json_file: JsonFile = None,
    timeline: HtmlFile = None,
) -> None:
    """Answer a question over a live crawl. The answer goes to the standard output, all else to the standard error."""
    crawl = {
        "seeds": url,
        "scope": scope.value,
        "max_pages": max_pages,
        "max_depth": max_depth,
        "delay_s": delay_s,
        "allow_private_hosts": allow_private_host or (),
        "cache": cache,
        "proxy": proxy,
        "allow_private_proxies": _hosts_in(proxy),  # who writes --proxy means it, wherever it is
    }
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    engine_args = parse_engine_args(engine_arg)
    request = Request(
        require_question(question), model, engine_args, crawl, system_prompt, sampling, answer_by_s, not no_stream
    )
    with quiet_terminal() as terminal:
        result = asyncio.run(_answer(request, terminal))
        _show_sources(result, terminal)
        _store(result, json_file, timeline)


def _hosts_in(url: str | None) -> tuple[str, ...]:
    try:
        host = urlsplit(url or "").hostname
    except ValueError:  # the crawler says what is wrong with it
        host = None
    return (host,) if host else ()


async def _answer(request: Request, terminal: Terminal) -> RAGResult:
    from stream2llm_rag.retrievers.crawler import WebCrawler

    crawler = WebCrawler(**request.crawl)  # what is wrong with it shows before an engine starts
    engine = Stream2LLMEngine(request.model, **request.engine_args)
    async with running(engine, terminal.notes, request.model), crawler:
        rag = StreamingRAG(engine, crawler, system_prompt=request.system_prompt, sampling=request.sampling)
        with Pages(terminal.notes, request.crawl["max_pages"]) as pages:
            options: dict[str, Any] = {"streaming": request.streaming, "answer_by_s": request.answer_by_s, "on_event": pages}
            async with rag.stream(request.question, **options) as answer:
                await _show_answer(answer, terminal.out)
                return answer.result


async def _show_answer(answer: AnswerStream, out: Console) -> None:
    """Write the answer as it comes. A model can repeat what pages told it to: nothing of it may command the terminal."""
    async for text in answer:
        out.file.write(strip_invisible(text))
        out.file.flush()
    out.file.write("\n")
    out.file.flush()


def _show_sources(result: RAGResult, terminal: Terminal) -> None:
    terminal.notes.print()
    for number, source in enumerate(result.sources, 1):
        terminal.note(f"[{number}] {source}")
    if result.crawl is not None:
        terminal.note(_crawled(result.crawl), "dim")
    for problem in _problems(result):
        terminal.note(problem, "yellow")
    terminal.note(" · ".join(figures(result.timeline)), "dim")


def _crawled(crawl: CrawlReport) -> str:
    """What the crawl came to, in a line."""
    total = crawl.total
    why = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in total.skipped.items())
    hosts = "1 host" if len(crawl.hosts) == 1 else f"{len(crawl.hosts)} hosts"
    return f"Pages read: {total.num_fetched}, skipped: {total.num_skipped}{why and f' ({why})'}, from {hosts}"


def _problems(result: RAGResult) -> list[str]:
    """What else there is to know about how the answer came about."""
    found = [
        (
            result.retrieval_error is not None,
            f"Retrieval failed, the answer is from what it had found: {result.retrieval_error}",
        ),
        (result.deadline_reached, "Retrieval was cut short by --answer-by-s."),
        (bool(result.left_out), f"{len(result.left_out)} pages found no room in the model's context."),
    ]
    return [words for holds, words in found if holds]


def _store(result: RAGResult, json_file: Path | None, timeline: Path | None) -> None:
    write_json(json_file, to_json(result))
    if timeline is not None:
        write(timeline, render_html([result.timeline]))


def to_json(result: RAGResult) -> dict[str, Any]:
    """Plain values: the answer, its measures under their own names, its sources, and its timeline."""
    return {
        "question": result.question,
        "answer": result.text,
        "finish_reason": result.finish_reason,
        "streaming": result.streaming,
        **result.timeline.measures,
        "num_pages": len(result.documents),
        "deadline_reached": result.deadline_reached,
        "retrieval_error": None if result.retrieval_error is None else str(result.retrieval_error),
        "sources": list(result.sources),
        "skipped": [{"source": event.source, "reason": event.detail} for event in result.skipped],
        "crawl": None if result.crawl is None else result.crawl.to_dict(),
        "left_out": [document.source for document in result.left_out],
        "timelines": json.loads(timelines_to_json([result.timeline])),
    }
