"""The command ``stream2llm``. Needs the ``cli`` extra."""

from __future__ import annotations

import importlib.util
import io
import sys

from stream2llm_rag.errors import MissingExtraError


def main() -> None:
    """Run the command that the arguments of this process name, and exit.

    Exit codes: 0 done, 1 done with a result that is not as it should be, 2 could not be done, 130 interrupted.
    """
    for module in ("typer", "rich"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"error: {MissingExtraError(f'{module}, which this command needs,', 'cli')}")
    from stream2llm_rag.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to stop
    app()
