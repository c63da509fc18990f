"""The tables of docs/results.md. Pure: from rows of a report to lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from benchmarks.paper.cells import Cell
from benchmarks.paper.published import FRONTENDS as PUBLISHED
from benchmarks.paper.published import MECHANISMS, SPEEDUP_BY_MECHANISM, TTFT_S, Load, Triple
from benchmarks.wording import NOT_RUN, interval, speedup, table
from stream2llm_rag.simulation.records import Percentiles
from stream2llm_rag.simulation.report import Row, number, ratio

Rows = dict[str, Row]
"""The rows of one cell, by front end."""

_ALLOWED = 0.25
AIMS = {1.0: ("16/11", ""), 0.5: ("14/10", ""), 0.35: ("10/7", "14/10"), 0.15: ("5/3", "6/4")}
"""Set before the runs for the crawler at delay x10, by pool: times NS at P50 / P99 without hints, and with them."""


def load_label(load: Load) -> str:
    """Such as ``crawler 4 QPS, delay x10``."""
    workload, qps, delay = load
    return f"{workload} {qps:g} QPS" + (f", delay x{delay:g}" if delay != 1 else "")


def fit_table(by_load: dict[Load, Rows]) -> str:
    """NS here and in the paper, and whether they are within 25% of each other."""
    heads = ("load", "ours P50/P95/P99 s", "paper s", "ours / paper", "P50 and P99 within 25%")
    return table(heads, (_fit_line(load, rows.get("ns")) for load, rows in by_load.items()))


def _fit_line(load: Load, ours: Row | None) -> Sequence[str]:
    paper = TTFT_S[load][0]
    if ours is None:
        return load_label(load), NOT_RUN, triple(paper), "", ""
    ratios = [own / other for own, other in zip(parts(ours.ttft_s), paper, strict=True)]
    is_near = all(abs(ratios[index] - 1) <= _ALLOWED for index in (0, 2))
    return load_label(load), triple(parts(ours.ttft_s)), triple(paper), triple(ratios), "yes" if is_near else "no"


def beside_the_paper(by_load: dict[Load, Rows]) -> str:
    """What the paper measured, and the same here: TTFT, and how many times sooner than NS."""
    heads = ("load", "front end", "ours P50/P95/P99 s", "paper s", "ours, times sooner than NS", "paper")
    return table(heads, (line for load, rows in by_load.items() for line in _paper_lines(load, rows)))


def _paper_lines(load: Load, rows: Rows) -> Iterator[Sequence[str]]:
    usual = TTFT_S[load][0]
    for frontend, paper in zip(PUBLISHED, TTFT_S[load], strict=True):
        row = rows.get(frontend)
        yield (
            load_label(load) if frontend == PUBLISHED[0] else "",
            frontend,
            NOT_RUN if row is None else triple(parts(row.ttft_s)),
            triple(paper),
            "" if row is None or row.speedup is None else triple(parts(row.speedup)),
            triple([slow / fast for slow, fast in zip(usual, paper, strict=True)]),
        )


def agreement_table(by_load: dict[Load, Rows]) -> str:
    """TTFT here over that in the paper, of all front ends that stream: the median, and the ends, by workload and delay."""
    heads = ("loads", "compared", *(f"ours / paper, {name}" for name in ("P50", "P95", "P99")))
    kinds = list(dict.fromkeys((workload, delay) for workload, _, delay in TTFT_S))
    return table(heads, (_agreement(kind, by_load) for kind in kinds))


def _agreement(kind: tuple[str, float], by_load: dict[Load, Rows]) -> Sequence[str]:
    workload, delay = kind
    ratios = [
        [own / other for own, other in zip(parts(rows[frontend].ttft_s), paper, strict=True)]
        for (name, qps, stretched), rows in by_load.items()
        for frontend, paper in zip(PUBLISHED[1:], TTFT_S[name, qps, stretched][1:], strict=True)
        if (name, stretched) == kind and frontend in rows
    ]
    label = workload + (f", delay x{delay:g}" if delay != 1 else "")
    spreads = (f"{number(median(each))} [{number(min(each))}, {number(max(each))}]" for each in zip(*ratios, strict=True))
    return label, f"{len(ratios)}", *(spreads if ratios else (NOT_RUN, "", ""))


def cell_table(rows: Rows, default: str) -> str:
    """All front ends of one cell."""
    heads = ("front end", "TTFT P50/P95/P99 s", "times sooner than NS", f"P50 / {default}'s", f"P99 / {default}'s")
    more = ("evictions", "computed / prompts", "invalidated", "deadlocks", "unanswered")
    return table((*heads, *more), (_cell_line(row, default) for row in rows.values()))


def _cell_line(row: Row, default: str) -> Sequence[str]:
    return (
        f"**{row.frontend}**" if row.frontend == default else row.frontend,
        triple(parts(row.ttft_s)),
        "" if row.speedup is None else triple(parts(row.speedup)),
        interval(row.to_default.get("p50")),
        interval(row.to_default.get("p99")),
        f"{row.num_evictions:,.0f}",
        f"{row.num_computed / row.num_prompt_tokens:.2f}",
        f"{row.num_invalidated:,.0f}",
        f"{row.num_deadlocked} of {row.num_seeds}" if row.num_deadlocked else "none",
        f"{row.num_unfinished:,}" if row.num_unfinished else "none",
    )


def aims_table(cells: dict[Cell, Rows], default: str) -> str:
    """What was aimed for under memory pressure, and what came out; beside it, without an aim, host memory."""
    heads = ("pool", f"{default}, P50/P99 times NS", "aim", "with hints", "aim", "with host memory", "with both")
    pressed = {cell.pool: rows for cell, rows in cells.items() if cell.load == ("crawler", 4, 10)}
    lines = []
    for pool, (aim, hinted_aim) in AIMS.items():
        plain, hinted, swapping, both = (
            speedup(pressed.get(pool, {}).get(default + extra)) for extra in ("", "+hints", "+auto", "+hints+auto")
        )
        lines.append((f"{pool:g}", plain, aim, hinted, hinted_aim, swapping, both))
    return table(heads, lines)


def standing_table(cells: dict[Cell, Rows], default: str, policies: Sequence[str]) -> str:
    """Each cell's comparisons with the other policies, P50 and P99: how many the default surely wins, and which it does not."""
    heads = ("cell", f"{default} surely sooner", "not decided", "another surely sooner")
    others = [policy for policy in policies if policy != default]
    return table(heads, (_standing(cell, rows, others) for cell, rows in cells.items() if any(name in rows for name in others)))


def _standing(cell: Cell, rows: Rows, others: Sequence[str]) -> Sequence[str]:
    compared = [
        (f"{policy} {name.upper()}", rows[policy].to_default[name])
        for policy in others
        for name in ("p50", "p99")
        if policy in rows and name in rows[policy].to_default
    ]
    longer = [name for name, found in compared if found.is_apart and found.mean > 1]
    shorter = [f"{name} {interval(found)}" for name, found in compared if found.is_apart and found.mean < 1]
    undecided = [f"{name} {interval(found)}" for name, found in compared if not found.is_apart]
    label = f"{load_label(cell.load)}, pool {cell.pool:g}"
    return label, f"{len(longer)} of {len(compared)}", ", ".join(undecided) or "none", ", ".join(shorter) or "none"


def throughput_table(cells: dict[Cell, Rows], default: str) -> str:
    """Until when all was answered, beside NS."""
    heads = ("cell", "NS s", f"{default} s", "ratio")
    lines = []
    for cell, rows in cells.items():
        if "ns" in rows and default in rows:
            usual_s, own_s = rows["ns"].completion_s, rows[default].completion_s
            label = f"{load_label(cell.load)}, pool {cell.pool:g}"
            lines.append((label, f"{usual_s:,.1f}", f"{own_s:,.1f}", f"{1 / ratio(usual_s, own_s):.4f}"))
    return table(heads, lines) if lines else f"{NOT_RUN.capitalize()}.\n"


def mechanism_table(by_load: dict[Load, Rows]) -> str:
    """The paper's ablation, and ours: the cost model, recompute only, swap only."""
    heads = ("load", "policy", *(f"{whose}: {mechanism}" for whose in ("paper", "ours") for mechanism in MECHANISMS))
    lines = (
        (
            load_label(load),
            policy,
            *map(triple, figures),
            *(_speedups(by_load[load].get(f"{policy}{extra}")) for extra in ("+auto", "", "+swap")),
        )
        for (load, policy), figures in SPEEDUP_BY_MECHANISM.items()
    )
    return table(heads, lines)


def _speedups(row: Row | None) -> str:
    return NOT_RUN if row is None or row.speedup is None else triple(parts(row.speedup))


def parts(values: Percentiles) -> Triple:
    """P50, P95 and P99."""
    return values.p50, values.p95, values.p99


def triple(values: Iterable[float]) -> str:
    """P50/P95/P99."""
    return "/".join(map(number, values))
