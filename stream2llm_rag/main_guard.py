"""Find out whether starting a process would run the user's script a second time.

Processes are started with the spawn method, which imports the main module anew in each child: a script that does its work at
the top level, without ``if __name__ == "__main__":``, would start over there. Python's own answer is a long traceback.
"""

from __future__ import annotations

import ast
import multiprocessing
import sys
from pathlib import Path
from types import FrameType

from stream2llm_rag.errors import EngineStartError


def refuse_unguarded_start() -> None:
    """Raise :class:`EngineStartError` where starting processes now would run the main script a second time."""
    script = missing_main_guard()
    if in_spawned_child() or script is not None:
        raise EngineStartError(
            f"{script or 'the main script'} starts an engine at its top level, and vLLM's processes would run it again. "
            'Put what it does under: if __name__ == "__main__":'
        )


def missing_main_guard() -> str | None:
    """Name the main script if it is running its top level right now without a guard; None when all is well."""
    main = sys.modules.get("__main__")
    script, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if script is None or not _top_level_is_running():
        return None
    if spec is not None and spec.name.split(".")[-1] == "__main__":
        return None  # `python -m package`: spawn does not import it again (multiprocessing/spawn.py, _fixup_main_from_name)
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    return None if any(_is_guard(node) for node in tree.body) else str(script)


def in_spawned_child() -> bool:
    """Tell whether this is a child that is still importing the main module."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _top_level_is_running() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))
