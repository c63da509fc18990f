"""``stream2llm doctor``"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream2llm_rag.cli.options import JsonFile, write_json
from stream2llm_rag.doctor import Diagnosis, Status, diagnose, inspect_machine
from stream2llm_rag.timeline.text import clean

_SIGNS = {Status.OK: ("✓", "green"), Status.WARN: ("!", "yellow"), Status.FAIL: ("✗", "bold red")}


def doctor(json_file: JsonFile = None) -> None:
    """Look at this installation: what does not fit, and how to mend it. Exit code 1 where something is broken."""
    diagnosis = diagnose(inspect_machine())
    write_json(json_file, diagnosis.to_json())
    Console().print(_table(diagnosis))
    if diagnosis.status is Status.FAIL:
        raise typer.Exit(1)


def _table(diagnosis: Diagnosis) -> Table:
    table = Table("", "Check", "Found", "To mend it", box=None, pad_edge=False, header_style="bold")
    for finding in diagnosis.findings:
        words = (Text(clean(text)) for text in (finding.check, finding.found, finding.remedy or ""))
        table.add_row(Text(*_SIGNS[finding.status]), *words)
    return table
