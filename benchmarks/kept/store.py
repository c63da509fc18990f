"""Results in the repository: a JSON file for each cell, a line in it for each run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept.cells import Cell
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.grid import FRONTENDS, Setting
from stream2llm_rag.simulation.runs import Run


@dataclass(frozen=True, slots=True)
class Kept:
    """A run, and the fingerprint of what decided it."""

    fingerprint: str
    run: Run


class Store:
    """The runs of every cell that ``folder`` has. Each addition is on disk when it returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: dict[str, dict[tuple[str, int], Kept]] = {}

    def of(self, cell: Cell) -> dict[tuple[str, int], Kept]:
        """By front end and seed; nothing where there is no file, or one that this version cannot read."""
        if cell.name not in self._cells:
            self._cells[cell.name] = {(kept.run.frontend, kept.run.seed): kept for kept in _read(self._path(cell))}
        return self._cells[cell.name]

    def runs(self, cell: Cell) -> list[Run]:
        """Its runs, front end by front end."""
        kept = self.of(cell)
        return [kept[key].run for key in sorted(kept, key=_place)]

    def run_of(self, cell: Cell, setting: Setting) -> Run | None:
        """The run of one setting, if it is there."""
        kept = self.of(cell).get((setting.frontend, setting.seed))
        return None if kept is None else kept.run

    def add(self, cell: Cell, fingerprint: str, run: Run) -> None:
        """Keep a run, in the place of what there was of its front end and seed."""
        kept = self.of(cell)
        kept[run.frontend, run.seed] = Kept(fingerprint, Run.from_json(run.to_json()))  # as it will be read
        lines = [_line(kept[key]) for key in sorted(kept, key=_place)]
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
        part.replace(path)  # whole, whenever the run is interrupted

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.name}.json"


def _place(key: tuple[str, int]) -> tuple[int, str, int]:
    frontend, seed = key
    return (FRONTENDS.index(frontend) if frontend in FRONTENDS else len(FRONTENDS), frontend, seed)


def _line(kept: Kept) -> str:
    stored: dict[str, Any] = {"fingerprint": kept.fingerprint, **kept.run.to_json()}
    return json.dumps(stored, separators=(",", ":"), allow_nan=False)


def _read(path: Path) -> Iterator[Kept]:
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return
    for line in stored:
        try:
            fingerprint = line.pop("fingerprint")
            yield Kept(fingerprint, Run.from_json(line))
        except (InvalidInputError, KeyError, AttributeError, TypeError):
            continue
