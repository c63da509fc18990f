"""Options that several commands have, and the files that they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stream2llm_rag.errors import InvalidInputError


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse what could not be written, before minutes were spent on what would be written there."""
    if path is not None and not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is no folder. Make it first, or name a file in one that is there.")
    return path


_FILE: Any = {"dir_okay": False, "writable": True, "callback": _in_a_folder}
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all measures to FILE.", **_FILE)]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a line for each run to FILE.", **_FILE)]
PictureFolder = Annotated[
    Path | None, typer.Option("--pictures", metavar="DIR", file_okay=False, help="Draw the results into DIR, as SVG and PNG.")
]
HtmlFile = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the timeline as a page.", **_FILE)]
SvgFile = Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Write the timeline as a picture.", **_FILE)]
EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        metavar="NAME=VALUE",
        help="One of vLLM's engine arguments, such as max_model_len=8192. May be given more than once.",
    ),
]


def parse_engine_args(assignments: Sequence[str] | None) -> dict[str, Any]:
    """``name=value`` each; a value that is JSON is read as such, any other is a string. BadParameter without a name."""
    parsed = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not (name.isidentifier() and equals):
            raise typer.BadParameter(f"--engine-arg got {assignment!r}. Write NAME=VALUE, such as max_model_len=8192.")
        parsed[name] = _value(value)
    return parsed


def write(path: Path, text: str) -> None:
    """Write a file, in a folder that is made where it is missing. InvalidInputError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}. Name another file.") from error


def write_json(path: Path | None, value: Any) -> None:
    """Write ``value`` as JSON if there is a path."""
    if path is not None:
        write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
