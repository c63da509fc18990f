"""What no scheduler can surpass, by the load alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.paper.cells import Cell
from benchmarks.paper.published import Load
from benchmarks.paper.tables import Rows, load_label, parts, triple
from benchmarks.wording import NOT_RUN, table
from stream2llm_rag.simulation.grid import Machine
from stream2llm_rag.simulation.records import Percentiles, percentiles
from stream2llm_rag.simulation.report import ratio
from stream2llm_rag.simulation.trace import Query, Trace


@dataclass(frozen=True, slots=True)
class Limits:
    """``last_piece_s`` is what computing the last piece alone takes, on an idle machine that has all before it.

    ``num_found`` are the tokens of context that is found and not final yet: a mean over the time in which queries arrive.
    """

    last_piece_s: Percentiles
    num_found: float


def limits(trace: Trace, machine: Machine) -> Limits:
    """The limits of one trace."""
    arrivals_s = [query.arrival_s for query in trace]
    num_found = sum(map(_token_seconds, trace)) / (max(arrivals_s) - min(arrivals_s))
    return Limits(percentiles(last_piece_s(query, machine) for query in trace), num_found)


def limits_table(by_load: dict[Load, Rows], default: str) -> str:
    """Medians over the seeds, and how far NS and the default policy are from the limit."""
    heads = ("load", "context found and not final, in pools", "last piece alone s", "NS / that", f"{default} / that")
    return table(heads, (_line(load, rows, ("ns", default)) for load, rows in by_load.items()))


def _line(load: Load, rows: Rows, shown: Sequence[str]) -> Sequence[str]:
    settings = Cell(load, 1.0).settings(("ns",))
    found = [limits(setting.load.trace(setting.seed), setting.machine) for setting in settings]
    share = median(each.num_found for each in found) / settings[0].machine.hardware.num_kv_tokens
    alone = [median(values) for values in zip(*(parts(each.last_piece_s) for each in found), strict=True)]
    ratios = (triple(map(ratio, parts(rows[name].ttft_s), alone)) if name in rows else NOT_RUN for name in shown)
    return load_label(load), f"{share:.2f}", triple(alone), *ratios


def _token_seconds(query: Query) -> float:
    """Each token of the context by the time from when it is found until the final context comes."""
    gaps_s = (after.after_s - before.after_s for before, after in pairwise(query.chunks))
    return sum(length * gap_s for length, gap_s in zip(query.prompt_lengths, gaps_s, strict=False))


def last_piece_s(query: Query, machine: Machine) -> float:
    """Seconds that the machine takes for what comes last, when it has all that stays before it and nothing else to do."""
    num_tokens = query.chunks[-1].num_tokens
    num_before, budget = query.num_prompt_tokens - num_tokens, machine.token_budget
    starts = range(0, num_tokens, budget)
    return sum(machine.hardware.step_time([(min(budget, num_tokens - start), num_before + start)]) for start in starts)
