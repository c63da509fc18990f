"""What a tree of processes takes of the machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(slots=True)
class Peak:
    """The most memory that a process and its descendants held at one moment, in bytes, shared pages counted once (PSS)."""

    num_bytes: int = 0


@contextmanager
def watching(pid: int, *, except_for: int | None = None, every_s: float = 0.1) -> Iterator[Peak]:
    """Look at the tree of ``pid``, but for one child, in a thread, for the time of the block."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while True:
            peak.num_bytes = max(peak.num_bytes, tree_bytes(pid, except_for))
            if over.wait(every_s):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def tree_bytes(pid: int, except_for: int | None = None) -> int:
    """The memory of the process and its descendants now; of those that end meanwhile, none."""
    try:
        root = psutil.Process(pid)
        return sum(_bytes_of(each) for each in [root, *root.children(recursive=True)] if each.pid != except_for)
    except psutil.NoSuchProcess:
        return 0


def _bytes_of(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
