"""The command of a set of simulations whose results are kept: run what is missing, then write a page of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.kept.cells import Cell
from benchmarks.kept.pending import adopt, pending, run_pending
from benchmarks.kept.store import Store
from stream2llm_rag.errors import Stream2LLMError


def run_command(description: str, cells: Iterable[Cell], folder: Path, write: Callable[[Store], None]) -> int:
    """Do what the command line says. Returns the exit code: 130 when interrupted, 2 for an error."""
    options = _parser(description).parse_args()
    store = Store(folder)
    try:
        missing = [] if options.render else pending(store, cells, options.only)
        if options.list:
            print("\n".join(each.label for each in missing))
            return 0
        if options.adopt is not None:
            missing = adopt(store, missing, options.adopt, options.jobs)
        run_pending(store, missing, options.jobs)
        write(store)
    except KeyboardInterrupt:
        print("interrupted; what had ended is kept", file=sys.stderr)
        return 130
    except Stream2LLMError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    return 0


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs that have this in their line of --list")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--render", action="store_true", help="only write the page")
    parser.add_argument(
        "--adopt", type=_count, metavar="N", help="keep stale runs where N of each front end come out as they were"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)
