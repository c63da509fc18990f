"""``stream2llm bench``"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stream2llm_rag.bench import Round, Way, every_way, parse_way
from stream2llm_rag.bench.account import equal_answers, to_json
from stream2llm_rag.bench.beside import Beside, simulate_beside
from stream2llm_rag.bench.calibration import Calibration
from stream2llm_rag.bench.local import Listener, LocalSettings, Measured, Plan, make_plan, measure
from stream2llm_rag.bench.scaling import Scale
from stream2llm_rag.bench.table import figure
from stream2llm_rag.cli.comparison import show, store
from stream2llm_rag.cli.options import CsvFile, JsonFile, PictureFolder, write_json
from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.cli.terminal import Terminal, spinner
from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.simulation import report
from stream2llm_rag.simulation.workloads import WORKLOADS
from stream2llm_rag.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from rich.console import Console

_DEFAULTS = LocalSettings()


def _names(ways: Iterable[Way]) -> str:
    return ", ".join(way.name for way in ways)


def bench(
    workload: Annotated[str, typer.Option(metavar="|".join(WORKLOADS), help="The paper's.")] = _DEFAULTS.workload,
    qps: Annotated[float, typer.Option(min=0.01, help="Queries a second, for the paper's machine.")] = _DEFAULTS.qps,
    delay: Annotated[float, typer.Option(min=0.01, help="Stretches the gaps between chunks.")] = _DEFAULTS.delay,
    pool: Annotated[float, typer.Option(min=0.001, help="Share of its KV cache.")] = _DEFAULTS.pool,
    way: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"{_names(every_way())}, or a policy+hints. [default: {_names(_DEFAULTS.ways)}]",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=5, help="Queries for each way.")] = _DEFAULTS.num_requests,
    rounds: Annotated[int, typer.Option(min=1, help="Traces that they are divided into.")] = _DEFAULTS.num_rounds,
    tokens: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the paper's tokens.")] = _DEFAULTS.tokens,
    seed: Annotated[int, typer.Option(min=0, help="Of the first trace.")] = _DEFAULTS.seed,
    prefix_caching: Annotated[bool, typer.Option("--prefix-caching", help="On; the paper has it off.")] = False,
    stall_limit_s: Annotated[
        float, typer.Option(min=1, help="An engine that computes nothing for so long while somebody waits stands still.")
    ] = _DEFAULTS.stall_limit_s,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    pictures: PictureFolder = None,
) -> None:
    """Replay a load in real time on real engines of this machine, with a tiny model: the usual way, vLLM's own streaming, ours.

    The paper's workload is brought to the size and the speed of this machine, which is timed first. The ways take turns, so
    that nothing else the machine does meets one of them alone. The same load is simulated with the step times of this machine,
    and where the two part is said. Takes less than ten minutes on two cores.
    """
    ways = tuple(map(parse_way, way)) if way else _DEFAULTS.ways
    settings = LocalSettings(workload, qps, delay, requests, rounds, pool, tokens, seed, ways, prefix_caching, stall_limit_s)
    plan = make_plan(settings)
    with quiet_terminal() as terminal:
        listener = _Teller(terminal)
        with listener.during("Getting the model"):
            model = build_tiny_model()
        measured = asyncio.run(measure(plan, model, listener))
        with listener.during("Simulating the same"):
            beside = simulate_beside(measured, f"{workload}, delay x{delay:g}, pool {pool:g}")
        runs = [run for kind in ("measured", "simulated") for run in (getattr(one, kind) for one in beside)]
        show(terminal.out, report.compare(runs), DEFAULT_POLICY)
        _show_beside(terminal.out, measured, beside)
        store(runs, DEFAULT_POLICY, None, csv_file, pictures)
        write_json(json_file, to_json(measured, beside))


class _Teller(Listener):
    """Tells it on the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def during(self, words: str) -> AbstractContextManager[Any]:
        return spinner(self._terminal.notes, words)

    def scaled(self, plan: Plan, calibration: Calibration, scale: Scale) -> None:
        for line in describe_scale(plan, calibration, scale):
            self._terminal.note(line)

    def round_done(self, index: int, done: Round) -> None:
        self._terminal.note(describe_round(index, done))


def describe_scale(plan: Plan, calibration: Calibration, scale: Scale) -> list[str]:
    """What this machine can do, and what becomes of the workload on it."""
    fit, step_time = calibration.fit, calibration.fit.step_time
    span_s = sum(max(query.final_s for query in trace) for trace in plan.traces) * scale.time
    return [
        f"Timed {calibration.num_steps} steps: {1e3 * step_time.base_s:.1f} ms each and {1e6 * step_time.token_s:.0f} us a "
        f"token (median error of the fit {fit.median_error:.0%}). A request takes {1e3 * calibration.overhead_s:.1f} ms beyond "
        "its steps.",
        f"Prompts have {scale.tokens:.3g} of the paper's tokens, and all times are {scale.time:.3g} of its: "
        f"{plan.settings.qps / scale.time:.2f} queries a second, {plan.num_blocks - 1} KV blocks of {plan.block_size} tokens, "
        f"steps of up to {plan.token_budget}.",
        f"The rounds take about {span_s * len(plan.settings.ways) / 60:.1f} minutes.",
    ]


def describe_round(index: int, done: Round) -> str:
    """One line about a round that has ended."""
    ttft_s = sorted(record.ttft_s for record in done.records)
    lateness_s = sorted(done.lateness_s)
    end = ", stood still" if done.stalled else ", cut off" if done.cut_off else ""
    return (
        f"Round {index + 1}, {done.way.name}: {done.duration_s:.0f} s{end}, TTFT P50 {figure(ttft_s[len(ttft_s) // 2])} s. "
        f"The driver was late by {1e3 * lateness_s[len(lateness_s) // 2]:.1f} ms in the median, {1e3 * lateness_s[-1]:.0f} ms "
        "at most."
    )


def _show_beside(out: Console, measured: Measured, beside: list[Beside]) -> None:
    kinds = ("measured", "simulated", "informed")
    heads = [f"{head} {kind}" for head in ("P50", "P95") for kind in kinds]
    table = Table("TTFT, s", *heads, "steps took", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in beside:
        each = [getattr(one, kind).summary.ttft_s for kind in kinds]
        times = [figure(getattr(ttft_s, name)) for name in ("p50", "p95") for ttft_s in each]
        table.add_row(one.way.name, *times, f"{one.slowdown:.2f} of the fit")
    out.print()
    out.print(Text("Measured and simulated beside each other", "bold"))
    out.print(Text("Informed: simulated with the times of the rounds' own steps, and what a request takes beyond them.", "dim"))
    out.print(table)
    for one in beside:
        for remark in one.remarks():
            out.print(Text(f"{one.way.name}: {remark}."))
    num_equal, num_compared = equal_answers(measured)
    out.print(Text(f"{num_equal} of {num_compared} answers are those of the first way, token for token."))
