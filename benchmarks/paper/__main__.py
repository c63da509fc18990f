"""Simulate what is missing or has changed, and write docs/results.md.

    python -m benchmarks.paper [--jobs N] [--only TEXT] [--list] [--render] [--adopt N]

Runs are kept in results/paper as they end; when interrupted, start it again. ``--only`` takes the runs that have TEXT in their
line of ``--list``, such as "crawler-4qps" or "pool1 ns"; ``--render`` only writes the page. After a change of code that should
change no result ``--adopt`` runs N stale runs of each front end anew, and where they come out as they were keeps the others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.kept.command import run_command
from benchmarks.paper.cells import CELLS
from benchmarks.paper.page import write_page


def main() -> int:
    return run_command(str(__doc__), CELLS, Path("results/paper"), lambda store: write_page(store, Path("docs")))


if __name__ == "__main__":
    sys.exit(main())
