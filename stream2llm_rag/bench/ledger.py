"""Rounds on disk: a JSON line each, so that a benchmark which was interrupted goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from stream2llm_rag.bench.replay import Round
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.records import RequestRecord

_FIELDS = [field.name for field in fields(RequestRecord)]


@dataclass(frozen=True, slots=True)
class Entry:
    """One round of one way, without what only the run itself needs. ``machine`` says on what and with which versions.

    ``lateness_s`` are the median and the maximum of what the driver was late; ``busy_s`` the seconds in which a step ran.
    """

    index: int
    way: str
    records: tuple[RequestRecord, ...]
    lateness_s: tuple[float, float]
    duration_s: float
    busy_s: float
    stalled: bool
    cut_off: bool
    machine: Mapping[str, str]

    @classmethod
    def of(cls, index: int, done: Round, machine: Mapping[str, str]) -> Self:
        """The entry for ``done``, round number ``index``."""
        lateness_s = sorted(done.lateness_s) or [0.0]
        return cls(
            index=index,
            way=done.way.name,
            records=done.records,
            lateness_s=(lateness_s[len(lateness_s) // 2], lateness_s[-1]),
            duration_s=done.duration_s,
            busy_s=sum(step.seconds for step in done.steps),
            stalled=done.stalled,
            cut_off=done.cut_off,
            machine=machine,
        )


def append_entry(path: Path, entry: Entry) -> None:
    """Write ``entry`` behind those that are there."""
    stored = asdict(entry) | {"fields": _FIELDS, "records": [_row(record) for record in entry.records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(stored, allow_nan=False) + "\n")


def read_entries(path: Path) -> list[Entry]:
    """What :func:`append_entry` wrote; nothing where there is no file.

    A last line that was cut short by an interruption is left out. Raises :class:`InvalidInputError`, which names the line, for
    any other that is not an entry.
    """
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise InvalidInputError(f"{path}, line {number} is no round: {error}. Delete it, or the file.") from error
    return entries


def done_rounds(entries: Iterable[Entry]) -> set[tuple[int, str]]:
    """Which rounds there are: number and way."""
    return {(entry.index, entry.way) for entry in entries}


def _row(record: RequestRecord) -> list[Any]:
    """The values in the order of the fields; JSON knows no infinity, so that is null."""
    return [None if value == math.inf else value for value in (getattr(record, name) for name in _FIELDS)]


def _entry(stored: dict[str, Any]) -> Entry:
    names = stored.pop("fields")
    records = tuple(_record(names, row) for row in stored.pop("records"))
    return Entry(records=records, lateness_s=tuple(stored.pop("lateness_s")), **stored)


def _record(names: list[str], row: list[Any]) -> RequestRecord:
    values: dict[str, Any] = dict(zip(names, row, strict=True))
    finite: dict[str, Any] = {name: math.inf if value is None else value for name, value in values.items()}
    return RequestRecord(**finite)
