"""Simulate what is missing or has changed, and write the tables of docs/policies.md.

    python -m benchmarks.policies [--jobs N] [--only TEXT] [--list] [--render] [--adopt N]

Runs are kept in results/policies as they end; when interrupted, start it again. ``--only`` takes the runs that have TEXT in
their line of ``--list``, such as "decoding" or "pool0.35 density"; ``--render`` only writes the tables; ``--adopt`` as in
``benchmarks.paper``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.kept.command import run_command
from benchmarks.kept.store import Store
from benchmarks.policies.conditions import CONDITIONS
from benchmarks.policies.tables import conditions_table, variants_table
from benchmarks.policies.variants import ABLATIONS
from stream2llm_rag.errors import InvalidInputError

PAGE = Path("docs/policies.md")


def main() -> int:
    return run_command(str(__doc__), [*CONDITIONS, *ABLATIONS], Path("results/policies"), write_tables)


def write_tables(store: Store) -> None:
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), store), "utf-8")


def with_tables(page: str, store: Store) -> str:
    """The page with its tables anew; each stands between two comments that name it."""
    for name, table in (("conditions", conditions_table(store)), ("variants", variants_table(store))):
        before, opening, rest = page.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- end of {name} -->\n")
        if not (opening and closing):
            raise InvalidInputError(f"{PAGE} lacks the table {name!r}. Write <!-- {name} --> and <!-- end of {name} -->.")
        page = "".join((before, opening, table, closing, after))
    return page


if __name__ == "__main__":
    sys.exit(main())
