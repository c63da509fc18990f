"""Simulate what is missing or has changed, and write docs/results.md.

    python -m benchmarks.paper [--jobs N] [--only TEXT] [--list] [--render] [--adopt N]

Runs are kept in results/paper as they end; when interrupted, start it again. ``--only`` takes the runs that have TEXT in their
line of ``--list``, such as "crawler-4qps" or "pool1 ns"; ``--render`` only writes the page. After a change of code that should
change no result ``--adopt`` runs N stale runs of each front end anew, and where they come out as they were keeps the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.kept.pending import adopt, pending, run_pending
from benchmarks.kept.store import Store
from benchmarks.paper.cells import CELLS
from benchmarks.paper.page import write_page
from stream2llm_rag.errors import Stream2LLMError

FOLDER = Path("results/paper")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs that have this in their line")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--render", action="store_true", help="only write docs/results.md and its pictures")
    parser.add_argument(
        "--adopt", type=int, metavar="N", help="keep stale runs where N of each front end come out as they were"
    )
    options = parser.parse_args()
    store = Store(FOLDER)
    missing = [] if options.render else pending(store, CELLS, options.only)
    if options.list:
        print("\n".join(each.label for each in missing))
        return 0
    try:
        if options.adopt:
            missing = adopt(store, missing, options.adopt, options.jobs)
        run_pending(store, missing, options.jobs)
    except KeyboardInterrupt:
        print("interrupted; what had ended is kept", file=sys.stderr)
        return 130
    except Stream2LLMError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    write_page(store, Path("docs"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
