"""Simulate what is missing or has changed, and write the tables of docs/policies.md and docs/swap.md.

    python -m benchmarks.policies [--jobs N] [--only TEXT] [--list] [--render] [--adopt N]

Runs are kept in results/policies as they end; when interrupted, start it again. ``--only`` takes the runs that have TEXT in
their line of ``--list``, such as "decoding", "link25" or "pool0.35 density"; ``--render`` only writes the tables; ``--adopt``
is as in ``benchmarks.paper``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.kept.command import run_command
from benchmarks.kept.store import Store
from benchmarks.policies.conditions import CONDITIONS
from benchmarks.policies.links import LINKS, links_table
from benchmarks.policies.tables import conditions_table, variants_table
from benchmarks.policies.variants import ABLATIONS
from stream2llm_rag.errors import InvalidInputError

FOLDER = Path("results/policies")
POLICIES_PAGE, SWAP_PAGE = Path("docs/policies.md"), Path("docs/swap.md")


def main() -> int:
    return run_command(str(__doc__), [*CONDITIONS, *ABLATIONS, *LINKS], FOLDER, lambda store: write_tables(store, Path()))


def write_tables(store: Store, root: Path) -> None:
    """Put each table into its page, between two comments that name it."""
    papers = Store(root / "results/paper")
    for page, name, table in (
        (POLICIES_PAGE, "conditions", conditions_table(store)),
        (POLICIES_PAGE, "variants", variants_table(store)),
        (SWAP_PAGE, "links", links_table(store, papers)),
    ):
        path = root / page
        path.write_text(with_table(path.read_text("utf-8"), name, table), "utf-8")


def with_table(page: str, name: str, table: str) -> str:
    """The page with this table anew."""
    before, opening, rest = page.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- end of {name} -->\n")
    if not (opening and closing):
        raise InvalidInputError(f"the page lacks the table {name!r}. Write <!-- {name} --> and <!-- end of {name} -->.")
    return "".join((before, opening, table, closing, after))


if __name__ == "__main__":
    sys.exit(main())
