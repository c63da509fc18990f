"""What the classes of a Python package have, read from its source without importing it: a directory, or a wheel."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.resources.abc import Traversable
from typing import TypeAlias

Members: TypeAlias = dict[str, tuple[str, ...] | None]
"""By name: the parameters of a method, without self or cls; None of an attribute or property."""


class PackageSource:
    """``root`` is the directory of the package called ``name``: a ``pathlib.Path``, or a ``zipfile.Path`` into a wheel."""

    def __init__(self, name: str, root: Traversable) -> None:
        self._name = name
        self._root = root
        self._parsed = cache(self._parse)

    def has(self, module: str, name: str) -> bool:
        """Whether ``from module import name`` would find something that the module defines or imports."""
        return name in _top_level(self._parsed(module))

    def members(self, module: str, name: str) -> Members | None:
        """What class ``name`` of ``module`` has, inherited or set in any of its methods; None where there is no such class.

        Follows imports and base classes inside the package.
        """
        found = _top_level(self._parsed(module)).get(name)
        if isinstance(found, ast.ImportFrom):
            original = next(alias.name for alias in found.names if (alias.asname or alias.name) == name)
            return self.members(self._absolute(module, found), original)
        if not isinstance(found, ast.ClassDef):
            return None
        members: Members = {}
        for base in reversed(found.bases):
            if isinstance(base, ast.Name):
                members |= self.members(module, base.id) or {}
        return members | _own_members(found)

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        package = module.split(".") if self._file(module, "__init__.py").is_file() else module.split(".")[:-1]
        return ".".join([*package[: len(package) - statement.level + 1], *filter(None, [statement.module])])

    def _parse(self, module: str) -> ast.Module:
        parent, _, last = module.rpartition(".")
        for file in (self._file(module, "__init__.py"), self._file(parent, f"{last}.py")):
            if module.split(".")[0] == self._name and file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
        return ast.Module(body=[], type_ignores=[])

    def _file(self, module: str, name: str) -> Traversable:
        return self._root.joinpath(*module.split(".")[1:], name)


def _top_level(module: ast.Module) -> dict[str, ast.stmt]:
    """Statements that bind each name, those under ``if`` and ``try`` too."""
    found: dict[str, ast.stmt] = {}
    for statement in _statements(module.body):
        for name in _bound(statement):
            found[name] = statement
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])


def _bound(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ImportFrom(names=names) | ast.Import(names=names):
            return [alias.asname or alias.name for alias in names]
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _own_members(owner: ast.ClassDef) -> Members:
    members: Members = {}
    for statement in owner.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            members |= dict.fromkeys(_set_on_self(statement))
            is_property = any("property" in ast.unparse(decorator) for decorator in statement.decorator_list)
            members[statement.name] = None if is_property else _parameters(statement)
        else:
            members |= dict.fromkeys(_bound(statement))
    return members


def _set_on_self(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def _parameters(method: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    arguments = method.args
    every = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in method.decorator_list)
    return tuple(every if is_static else every[1:])
