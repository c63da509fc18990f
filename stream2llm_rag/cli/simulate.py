"""``stream2llm simulate``"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm_rag.cli.comparison import show, store
from stream2llm_rag.cli.options import CsvFile, JsonFile, PictureFolder
from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.cli.terminal import bar
from stream2llm_rag.cli.timeline import read_timelines
from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.grid import (
    FRONTENDS,
    STOCK_FRONTENDS,
    TOKEN_BUDGETS,
    Generated,
    Load,
    Machine,
    Recorded,
    Setting,
    run_all,
)
from stream2llm_rag.simulation.importing import trace_from_timelines
from stream2llm_rag.simulation.report import compare
from stream2llm_rag.simulation.runs import Run
from stream2llm_rag.simulation.step_time import hardware_names, load_hardware
from stream2llm_rag.simulation.trace import read_trace
from stream2llm_rag.simulation.workloads import WORKLOADS

if TYPE_CHECKING:
    from rich.console import Console

_DEFAULT_TOKEN_BUDGET = 8192


def simulate(
    workload: Annotated[
        list[str] | None, typer.Option(metavar="|".join(WORKLOADS), help="The paper's. [default: crawler]")
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Instead of a workload: a trace (JSON lines), or what ask wrote with --json.",
        ),
    ] = None,
    qps: Annotated[list[float] | None, typer.Option(help="Queries a second. [default: 4 for a workload]")] = None,
    delay: Annotated[
        list[float] | None, typer.Option(help="Stretches the gaps between chunks of a workload. [default: 1]")
    ] = None,
    pool: Annotated[list[float] | None, typer.Option(help="Share of the hardware's KV cache. [default: 1]")] = None,
    front_end: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"{', '.join(FRONTENDS)}, or a policy+hints or module:Class. [default: all these]"),
    ] = None,
    preempt: Annotated[
        list[Preemption] | None,
        typer.Option(help="What becomes of victims' KV under our policies. [default: recompute, without host memory]"),
    ] = None,
    host_gib: Annotated[float, typer.Option(min=0, help="Host memory for KV, in GiB, where it is not recompute.")] = 256.0,
    hardware: Annotated[
        str, typer.Option(metavar="NAME|FILE", help=f"{', '.join(hardware_names())}, or a JSON file like theirs.")
    ] = "h200x2",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs of each.")] = 1,
    requests: Annotated[int, typer.Option(min=5, help="Queries of a workload in each run.")] = 2000,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer to a workload.")] = 1,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a step. [default: the paper's: 2048 for crawler, else 8192]")
    ] = None,
    prefix_caching: Annotated[bool, typer.Option("--prefix-caching", help="On; the paper has it off.")] = False,
    asynchronous: Annotated[bool, typer.Option("--async", help="Schedule a step while the one before runs.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    pictures: PictureFolder = None,
) -> None:
    """Replay a load in virtual time, on vLLM's scheduler and ours, without a model. Options given several times make a grid.

    The first table says when first tokens came after the final context (TTFT), how many times sooner than the usual way (NS),
    and in multiples of the default policy's, with 95% intervals over the seeds; a star says that these exclude 1.
    """
    machines = [replace(each, host_gib=host_gib) for each in _machines(hardware, pool, prefix_caching, asynchronous)]
    front_ends = list(_with_preemption(front_end or FRONTENDS, preempt or [Preemption.RECOMPUTE]))
    if trace:
        if workload or delay:
            raise typer.BadParameter("--trace comes without --workload and --delay: it has the times of its own.")
        loads = [load for path in trace for load in _recorded(path, qps)]
    else:
        axes = product(workload or ["crawler"], qps or [4.0], delay or [1.0])
        loads = [Generated(*axis, requests, output_tokens) for axis in axes]
    settings = list(_settings(loads, machines, token_budget, front_ends, seeds))
    with quiet_terminal() as terminal:
        runs = _run(settings, jobs, terminal.notes)
        show(terminal.out, compare(runs), DEFAULT_POLICY)
        store(runs, DEFAULT_POLICY, json_file, csv_file, pictures)


def _machines(hardware: str, pools: Sequence[float] | None, prefix_caching: bool, asynchronous: bool) -> list[Machine]:
    known, depth = load_hardware(hardware), 2 if asynchronous else 1
    return [Machine(known, pool, prefix_caching=prefix_caching, depth=depth) for pool in pools or [1.0]]


def _with_preemption(frontends: Sequence[str], ways: Sequence[Preemption]) -> Iterator[str]:
    """Our own front ends once for each way to preempt, the others as they are."""
    for name in frontends:
        if name in STOCK_FRONTENDS:
            yield name
        else:
            yield from (name if way is Preemption.RECOMPUTE else f"{name}+{way}" for way in ways)


def _recorded(path: Path, rates: Sequence[float] | None) -> Iterator[Load]:
    """A trace as it is, or the timelines of a file: as they were asked, or at each of the rates."""
    if not _has_timelines(path):
        if rates:
            raise typer.BadParameter(f"{path} has arrivals of its own: leave out --qps.")
        yield Recorded(path.name, read_trace(path))
        return
    timelines = read_timelines(path)
    if not rates:
        yield Recorded(path.name, trace_from_timelines(timelines))
    for rate in rates or ():
        yield Recorded(path.name, trace_from_timelines(timelines, qps=rate), rate)


def _has_timelines(path: Path) -> bool:
    """Whether a file is what ``ask`` wrote with ``--json``. A trace has one value in each line, and no timelines."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except ValueError:
        return False  # what is wrong with it is said by what reads traces
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}. Name a trace, or what ask wrote with --json.") from error
    return isinstance(stored, list) or (isinstance(stored, dict) and not stored.keys().isdisjoint(("timelines", "events")))


def _settings(
    loads: Sequence[Load], machines: Sequence[Machine], token_budget: int | None, frontends: Sequence[str], num_seeds: int
) -> Iterator[Setting]:
    for load, machine in product(loads, machines):
        own = TOKEN_BUDGETS.get(load.workload, _DEFAULT_TOKEN_BUDGET) if isinstance(load, Generated) else _DEFAULT_TOKEN_BUDGET
        for frontend, seed in product(frontends, range(num_seeds if isinstance(load, Generated) else 1)):
            yield Setting(load, replace(machine, token_budget=token_budget or own), frontend, seed)


def _run(settings: Sequence[Setting], jobs: int, notes: Console) -> list[Run]:
    """All runs, in the order of their settings."""
    found: dict[int, Run] = {}
    with bar(notes, "Simulating", len(settings)) as advance:
        for index, run in run_all(settings, jobs):
            found[index] = run
            advance()
    return [found[index] for index in range(len(settings))]
