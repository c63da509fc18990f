"""Run DiskANN's builder in a process of its own: what it is told, how far it is, and what its end means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from stream2llm_rag.errors import IndexBuildError, InvalidInputError
from stream2llm_rag.retrievers.diskann.layout import DEFAULT_PREFIX

BuildStage: TypeAlias = Literal["documents", "vectors", "quantise", "graph", "layout", "done"]
_SCRIPT = Path(__file__).with_name("build_process.py")
# What the Rust builder logs when a stage ends, and the stage that follows it.
_CHECKPOINTS: tuple[tuple[str, BuildStage], ...] = (("PqConstruction", "graph"), ("InmemIndexBuild", "layout"))
_NUM_LINES_KEPT = 20
# Nodes that two threads insert at the same moment do not see each other: of a few, one could stay without any way to it.
_POINTS_A_THREAD = 1000


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """A stage of the build begins, ``elapsed_s`` seconds after its start."""

    stage: BuildStage
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class GraphParameters:
    """How the graph is built: R, L and alpha of the DiskANN paper, and bytes of a quantised vector.

    ``num_chunks`` None takes a byte for two dimensions, at most 128. ``num_threads`` 0 takes all processors; however
    many it says, there is one for each 1,000 points at most.
    """

    degree: int = 64
    build_complexity: int = 100
    alpha: float = 1.2
    num_chunks: int | None = None
    num_threads: int = 0
    max_memory_gb: float = 4.0

    def check(self, num_stored_dims: int, num_points: int) -> GraphParameters:
        """These with ``num_chunks`` and ``num_threads`` chosen. InvalidInputError for what cannot be built."""
        num_chunks = max(1, min(128, num_stored_dims // 2)) if self.num_chunks is None else self.num_chunks
        for name, value, least, most in (
            ("degree", self.degree, 4, 512),
            ("build_complexity", self.build_complexity, self.degree, 10_000),
            ("num_chunks", num_chunks, 1, num_stored_dims),
            ("num_threads", self.num_threads, 0, 1024),
        ):
            if not isinstance(value, int) or not least <= value <= most:
                raise InvalidInputError(f"{name} is a whole number from {least} to {most}, but {value!r} came.")
        if not 1.0 <= self.alpha <= 4.0 or not self.max_memory_gb > 0:
            raise InvalidInputError(
                f"alpha is 1 to 4 and max_memory_gb above 0, but {self.alpha!r}, {self.max_memory_gb!r} came."
            )
        num_threads = min(self.num_threads or os.cpu_count() or 1, max(1, num_points // _POINTS_A_THREAD))
        return replace(self, num_chunks=num_chunks, num_threads=num_threads)


class Reporter:
    """Tells ``on_progress``, where there is one, that a stage begins."""

    def __init__(self, on_progress: Callable[[BuildProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._started_s = time.monotonic()

    def __call__(self, stage: BuildStage) -> None:
        """Tell it of ``stage``."""
        if self._on_progress is not None:
            self._on_progress(BuildProgress(stage, time.monotonic() - self._started_s))


def run_builder(folder: Path, graph: GraphParameters, timeout_s: float | None, report: Reporter) -> None:
    """Run the builder to its end. IndexBuildError, with its last words, where it fails or takes longer than ``timeout_s``."""
    settings = {
        "data": str(folder / "vectors.bin"),
        "index_directory": str(folder),
        "complexity": graph.build_complexity,
        "graph_degree": graph.degree,
        "build_memory_maximum": graph.max_memory_gb,
        "num_threads": graph.num_threads,
        "num_of_pq_chunks": graph.num_chunks,
        "alpha": graph.alpha,
        "index_prefix": DEFAULT_PREFIX,
    }
    command = [sys.executable, "-P", str(_SCRIPT), json.dumps(settings)]
    last_lines: deque[str] = deque(maxlen=_NUM_LINES_KEPT)
    timed_out = threading.Event()
    with subprocess.Popen(  # noqa: S603 - our own script
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        timer = threading.Timer(timeout_s or 0, _kill, (process, timed_out))
        try:
            if timeout_s is not None:
                timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                last_lines.append(line.rstrip())
                _report_checkpoint(line, report)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if timed_out.is_set():
        raise IndexBuildError(f"The build took longer than timeout_s={timeout_s:g} and was ended.")
    if process.returncode != 0:
        words = "\n  ".join(last_lines)
        raise IndexBuildError(f"DiskANN's builder ended with exit code {process.returncode}. Its last words:\n  {words}")


def _kill(process: subprocess.Popen[str], timed_out: threading.Event) -> None:
    timed_out.set()
    process.kill()


def _report_checkpoint(line: str, report: Reporter) -> None:
    for checkpoint, next_stage in _CHECKPOINTS:
        if checkpoint in line:
            report(next_stage)
