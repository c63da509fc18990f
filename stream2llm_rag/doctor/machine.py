"""Looks at a machine: Python, installed distributions, GPUs, memory."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import cast

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

logger = logging.getLogger(__name__)

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_NVIDIA_SMI_LIMIT_S = 30.0  # without persistence mode the driver takes seconds to wake, more with many GPUs


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution, as its metadata has it."""

    version: Version
    requires: tuple[Requirement, ...] = ()
    extras: frozenset[str] = frozenset()
    requires_python: SpecifierSet = field(default_factory=SpecifierSet)

    @property
    def is_cpu_build(self) -> bool:
        """Whether the local version says ``cpu``, as in PyTorch's ``2.13.0+cpu``."""
        return self.version.local == "cpu"


@dataclass(frozen=True, slots=True)
class Machine:
    """What was seen of a machine.

    ``markers`` are the environment markers of PEP 508; ``packages`` is keyed by canonical name; ``gpus`` has one line for each.
    ``gpu_error`` is how nvidia-smi failed where it exists. ``available_memory_bytes`` is None where the system does not tell.
    """

    markers: Mapping[str, str]
    packages: Mapping[str, Package]
    gpus: tuple[str, ...] = ()
    gpu_error: str | None = None
    available_memory_bytes: int | None = None


def inspect_machine() -> Machine:
    """Look at this machine and at the environment of the running interpreter. Blocks for up to half a minute."""
    gpus, gpu_error = _query_gpus()
    return Machine(
        markers=cast("Mapping[str, str]", default_environment()),
        packages=_read_packages(),
        gpus=gpus,
        gpu_error=gpu_error,
        available_memory_bytes=read_available_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup")),
    )


def read_package(distribution: Distribution) -> tuple[str, Package] | None:
    """Return canonical name and content of a distribution, or None for what an interrupted installation left behind."""
    metadata = distribution.metadata
    if "Name" not in metadata or "Version" not in metadata:
        return None
    try:
        return canonicalize_name(metadata["Name"]), Package(
            version=Version(metadata["Version"]),
            requires=tuple(map(Requirement, distribution.requires or ())),
            extras=frozenset(metadata.get_all("Provides-Extra") or ()),
            requires_python=SpecifierSet(",".join(metadata.get_all("Requires-Python") or ())),
        )
    except (InvalidVersion, InvalidRequirement, InvalidSpecifier):
        logger.debug("distribution with unusable metadata: %s", metadata["Name"], exc_info=True)
        return None


def read_available_memory(meminfo: Path, cgroup: Path) -> int | None:
    """Return the bytes that new processes can have: what the kernel estimates, within the limit of a container (cgroup v2)."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        usage = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        used = int((cgroup / "memory.current").read_text()) - int(usage["inactive_file"])  # page cache that gives way
        return min(available, max(0, int((cgroup / "memory.max").read_text()) - used))
    except (OSError, KeyError, ValueError):  # no container, or "max": no limit
        return available


def _read_packages() -> dict[str, Package]:
    found: dict[str, Package] = {}
    for entry in filter(None, map(read_package, distributions())):
        found.setdefault(*entry)  # the first on sys.path is the one that is imported
    return found


def _query_gpus() -> tuple[tuple[str, ...], str | None]:
    """Return the GPUs that answer, and how the query failed. Without nvidia-smi there is no driver: no GPU, no failure."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            _NVIDIA_SMI, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_NVIDIA_SMI_LIMIT_S, check=False
        )
    except FileNotFoundError:
        return (), None
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if done.returncode != 0:
        return (), (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
    return tuple(done.stdout.splitlines()), None
