"""Simulate what is missing or has changed, and write the tables of docs/policies.md.

    python -m benchmarks.policies [--jobs N] [--only TEXT] [--render]

Runs are kept in results/policies as they end; when interrupted, start it again. ``--only`` takes the runs that have TEXT in
their name, such as "decoding" or "pool0.35 density"; ``--render`` only writes the tables.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.kept.pending import pending, run_pending
from benchmarks.kept.store import Store
from benchmarks.policies.conditions import CONDITIONS
from benchmarks.policies.tables import conditions_table, variants_table
from benchmarks.policies.variants import ABLATIONS

FOLDER = Path("results/policies")
PAGE = Path("docs/policies.md")


def with_tables(page: str, store: Store) -> str:
    """The page with its tables anew; each stands between two comments that name it."""
    for name, table in (("conditions", conditions_table(store)), ("variants", variants_table(store))):
        before, opening, rest = page.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- end of {name} -->\n")
        page = "".join((before, opening, table, closing, after))
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs that have this in their name")
    parser.add_argument("--render", action="store_true", help="only write the tables")
    options = parser.parse_args()
    store = Store(FOLDER)
    try:
        run_pending(store, [] if options.render else pending(store, [*CONDITIONS, *ABLATIONS], options.only), options.jobs)
    except KeyboardInterrupt:
        print("interrupted; what had ended is kept", file=sys.stderr)
        return 130
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), store), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
