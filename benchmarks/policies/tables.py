"""The two tables of docs/policies.md. Pure."""

from __future__ import annotations

from functools import partial

from benchmarks.kept.store import Store
from benchmarks.policies.conditions import CONDITIONS, FRONTENDS, Condition
from benchmarks.policies.variants import ABLATIONS, VARIANTS
from benchmarks.wording import NOT_RUN, interval, speedup, table
from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.simulation.report import Row, compare, number


def conditions_table(store: Store) -> str:
    """How many times sooner than NS: * where the TTFT is surely longer than the default policy's, + where it is shorter."""
    shown = FRONTENDS[1:]
    return table(("load", "pool", *shown), ((*_of(cell), *_speedups(store, cell)) for cell in CONDITIONS))


def _of(cell: Condition) -> tuple[str, str]:
    return cell.label, f"{cell.pool:g}"


def _speedups(store: Store, cell: Condition) -> list[str]:
    rows = {row.frontend: row for row in compare(store.runs(cell))}
    return [speedup(row, partial(_mark, row)) for row in map(rows.get, FRONTENDS[1:])]


def _mark(row: Row | None, name: str) -> str:
    found = None if row is None else row.to_default.get(name)
    if row is None or row.frontend == DEFAULT_POLICY or found is None or not found.is_apart:
        return ""
    return "*" if found.mean > 1 else "+"


def variants_table(store: Store) -> str:
    """TTFT of each variant in multiples of the default policy's, and how much more it computes."""
    heads = [f"{name}, pool {cell.pool:g}" for cell in ABLATIONS for name in ("P50", "P99", "computed")]
    rows = [{row.frontend.rpartition(":")[2]: row for row in compare(store.runs(cell))} for cell in ABLATIONS]
    lines = []
    for variant in VARIANTS:
        summary = str(variant.__doc__).partition("\n")[0]
        figures = [text for found in rows for text in _to_default(found, variant.__name__)]
        lines.append((f"`{variant.__name__}`: {summary[0].lower()}{summary[1:].rstrip('.')}", *figures))
    return table(("variant", *heads), lines)


def _to_default(found: dict[str, Row], name: str) -> tuple[str, str, str]:
    own, default = found.get(name), found.get(DEFAULT_POLICY)
    if own is None or default is None:
        return (NOT_RUN, "", "")
    share = number(own.num_computed / default.num_computed)
    return interval(own.to_default.get("p50")), interval(own.to_default.get("p99")), share
