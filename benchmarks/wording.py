"""Tables and figures as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream2llm_rag.simulation.report import Interval, number


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is to the left and the others to the right."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def interval(found: Interval | None) -> str:
    """The mean and its interval."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return number(found.mean)
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"
