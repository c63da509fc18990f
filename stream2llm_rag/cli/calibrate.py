"""``stream2llm calibrate``"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stream2llm_rag.cli.chart import Chart, Curve, duration
from stream2llm_rag.cli.options import EngineArgs, JsonFile, parse_engine_args, write_json
from stream2llm_rag.cli.quiet import quiet_terminal
from stream2llm_rag.cli.terminal import Terminal, spinner
from stream2llm_rag.demo.models import choose_model
from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.engine.calibrate import DEFAULT_SECONDS, Measured, calibrating, measure
from stream2llm_rag.engine.cost_model import DEFAULT_MARGIN, CostModel
from stream2llm_rag.engine.costs import Costs
from stream2llm_rag.engine.fits import StoredFit, load_fit
from stream2llm_rag.engine.fitting import Error, crossover, errors_of, fit_costs, medians
from stream2llm_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.console import Console

MAX_ERROR = 0.25
"""The median error beyond which a fit is not worth deciding by."""

_WIDTH = 128  # where no terminal says how wide it is
_NAMES = {"step": "computing", "swap_out": "copying out", "swap_in": "copying in"}


def calibrate(
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model that vLLM can load. Default: a tiny one with random weights.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure anew, and say how far the stored fit is off. Nothing is stored.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long steps are timed; starting the engine comes on top.")
    ] = DEFAULT_SECONDS,
    engine_arg: EngineArgs = None,
    json_file: JsonFile = None,
) -> None:
    """Measure what computing KV and copying it take with a model on this machine, for the choice between the two.

    The fit is stored, and an engine with the same model, device, dtypes, tensor and pipeline parallelism, enforce_eager, block
    size, attention backend and vLLM finds it when it starts: give the engine arguments that you will use. Exit code 1 where the
    median error of a part of the fit is 25% or more.
    """
    with quiet_terminal() as terminal:
        with spinner(terminal.notes, "Getting the model"):
            chosen = choose_model(model, Settings())
        engine_args = {**chosen.engine_args, **parse_engine_args(engine_arg)}
        started = time.monotonic()
        measured = asyncio.run(_measure(chosen.name, engine_args, seconds, terminal))
        fit = _stored(measured) if check else _fitted(measured)
        errors = errors_of(fit.costs, measured.timings)
        write_json(json_file, to_json(fit, measured, errors, is_check=check))
        _show(terminal.out, fit, measured, errors, time.monotonic() - started, is_check=check)
        if not check:
            terminal.note(f"Stored in {fit.save()}")
    if any(error.median >= MAX_ERROR for error in errors.values()):
        raise typer.Exit(1)


async def _measure(model: str, engine_args: Mapping[str, Any], seconds: float, terminal: Terminal) -> Measured:
    with spinner(terminal.notes, "Starting the engine") as progress:
        async with calibrating(model, **engine_args) as engine:
            return await measure(
                engine, seconds=seconds, tell=lambda words: progress.update(progress.task_ids[0], description=words)
            )


def _fitted(measured: Measured) -> StoredFit:
    costs = fit_costs(measured.timings)
    errors = medians(errors_of(costs, measured.timings))
    return StoredFit(measured.key, costs, errors, datetime.now(UTC).isoformat(timespec="seconds"))


def _stored(measured: Measured) -> StoredFit:
    fit = load_fit(measured.key)
    if fit is None:
        raise InvalidInputError(
            f"no fit is stored for {json.dumps(asdict(measured.key))}. Run calibrate without --check first, with its options."
        )
    return fit


def to_json(fit: StoredFit, measured: Measured, errors: Mapping[str, Error], *, is_check: bool) -> dict[str, Any]:
    """Plain values: the key, the costs, their errors, and all that was measured."""
    return {
        "key": asdict(fit.key),
        "measured_at": fit.measured_at,
        "is_check": is_check,
        "costs": fit.costs.to_dict(),
        "errors": {name: asdict(error) for name, error in errors.items()},
        "crossover_tokens": crossover(CostModel(fit.costs, fit.key.block_size), measured.max_tokens),
        "timings": asdict(measured.timings),
    }


def _show(
    out: Console, fit: StoredFit, measured: Measured, errors: Mapping[str, Error], duration_s: float, *, is_check: bool
) -> None:
    if not out.is_terminal:
        out.width = max(out.width, _WIDTH)
    key = fit.key
    words = (
        f"{key.dtype}, tensor parallel {key.tensor_parallel_size}, blocks of {key.block_size} tokens, {key.attention_backend}"
    )
    out.print(Text(f"{key.model} on {key.device}", "bold"), soft_wrap=True)
    out.print(Text(f"{words}, vLLM {key.vllm}. {duration_s:.0f} s.", "dim"), soft_wrap=True)
    if is_check:
        out.print(Text(f"The fit of {fit.measured_at} beside new measurements."))
    out.print()
    out.print(_table(fit.costs, errors))
    out.print()
    for line in _picture(fit, measured.max_tokens):
        out.print(line, no_wrap=True, overflow="crop")
    out.print()
    for sentence in _verdicts(fit, measured.max_tokens):
        out.print(Text(sentence))


def _table(costs: Costs, errors: Mapping[str, Error]) -> Table:
    table = Table("", "takes", "measured", "median error", "P95", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, words in _words(costs).items():
        error = errors[name]
        style = "red" if error.median >= MAX_ERROR else ""
        table.add_row(_NAMES[name], words, str(error.num_measurements), Text(f"{error.median:.1%}", style), f"{error.p95:.1%}")
    return table


def _words(costs: Costs) -> dict[str, str]:
    """The coefficients, each with its unit."""
    step = costs.step
    found = {
        "step": f"{duration(step.step_s)} a step + {duration(step.token_s)} a token + {duration(step.attention_s)} a pair "
        f"of tokens + {duration(step.kv_read_s)} a token of context",
    }
    for name, copy in (("swap_out", costs.swap_out), ("swap_in", costs.swap_in)):
        found[name] = f"{duration(copy.operation_s)} an operation + {duration(copy.block_s)} a block"
    return found


def _picture(fit: StoredFit, max_tokens: int) -> Iterator[Text]:
    model, block_size = CostModel(fit.costs, fit.key.block_size), fit.key.block_size

    def copy_s(num_tokens: float) -> float:
        num_blocks = math.ceil(num_tokens / block_size)
        return model.swap_out_s(num_blocks) + model.swap_in_s(num_blocks)

    curves = [
        Curve("computing again", "•", "blue", lambda num_tokens: model.recompute_s(round(num_tokens))),
        Curve("copying out and in", "x", "yellow", copy_s),
    ]
    yield Text("Time to have so many tokens of a prompt back, from its beginning", "bold")
    yield from Chart(curves, 16, max(64, max_tokens), duration, crossover(model, max_tokens)).lines()


def _verdicts(fit: StoredFit, max_tokens: int) -> Iterator[str]:
    """From where on a victim is copied, at the beginning of a prompt and behind half of the longest."""
    model = CostModel(fit.costs, fit.key.block_size)
    for context, where in ((0, "At the beginning of a prompt"), (max_tokens // 2, f"Behind {max_tokens // 2:,} others")):
        num_tokens = crossover(model, max_tokens - context, context)
        if num_tokens is None:
            yield f"{where} a victim's tokens are always computed again: no copy is {DEFAULT_MARGIN:g} times cheaper."
        else:
            yield f"{where} {num_tokens:,} and more of a victim's tokens are copied: that is {DEFAULT_MARGIN:g} times cheaper."
