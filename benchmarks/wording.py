"""Tables and figures as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from stream2llm_rag.simulation.report import Interval, Row, number

NOT_RUN = "not run yet"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is to the left and the others to the right."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def speedup(row: Row | None, mark: Callable[[str], str] = lambda _: "") -> str:
    """How many times sooner than NS, P50/P99, each with what ``mark`` says of it by name."""
    if row is None or row.speedup is None:
        return NOT_RUN
    return "/".join(number(getattr(row.speedup, name)) + mark(name) for name in ("p50", "p99"))


def interval(found: Interval | None) -> str:
    """The mean and its interval."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return number(found.mean)
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"
