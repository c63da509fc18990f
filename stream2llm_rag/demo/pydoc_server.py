"""Serves the documentation of the Python that runs this file, until its standard input ends.

Run as a script, with nothing but the standard library in sight (``python -I -S``), so that its pages are those of Python alone.
The first line of its output is the server's address. The kernel closes the pipe to its standard input when the parent is gone,
however that came about, so it never outlives it.
"""

from __future__ import annotations

import os
import pydoc
import sys
from typing import Any, cast


def main() -> None:
    """Serve until standard input ends. Exits with the server's error where it cannot start."""
    start: Any = cast("Any", pydoc)._start_server
    server = start(cast("Any", pydoc)._url_handler, "127.0.0.1", 0)
    if server.error is not None:
        sys.exit(f"{server.error}")
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # documenting a module imports it, and some print
    sys.stdin.read()
    os._exit(0)  # not sys.exit: a page that is still being made would hold the interpreter


if __name__ == "__main__":
    main()
