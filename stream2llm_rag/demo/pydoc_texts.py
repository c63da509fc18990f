"""Writes the documentation of the Python that runs this file to its standard output: a line of JSON for each module.

Run as a script, with nothing but the standard library in sight (``python -I -S``), so that its modules are those of Python
alone.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import pydoc
import sys
from collections.abc import Iterator

# Modules that do something when they are imported, that need a display, or that are tests.
_LEFT_OUT = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "test", "lib2to3", "ensurepip", "encodings"}


def main() -> None:
    """Document every public module that can be imported."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # documenting a module imports it, and some print
    for name in _modules():
        try:
            text = pydoc.plain(pydoc.render_doc(importlib.import_module(name)))
        except (Exception, SystemExit):  # noqa: S112 - a module of another system, say
            continue
        out.write(json.dumps([name, text]) + "\n")
    out.close()
    os._exit(0)  # some modules start threads


def _modules() -> Iterator[str]:
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        if name.startswith("_"):
            continue
        yield name
        try:
            package = importlib.import_module(name)
        except (Exception, SystemExit):  # noqa: S112 - as above
            continue
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            if not module.name.startswith(("_", "test", "win")) and not module.ispkg:
                yield f"{name}.{module.name}"


if __name__ == "__main__":
    main()
