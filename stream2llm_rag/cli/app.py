"""The commands put together, and what becomes of errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from stream2llm_rag import __version__
from stream2llm_rag.cli.ask import ask
from stream2llm_rag.cli.bench import bench
from stream2llm_rag.cli.calibrate import calibrate
from stream2llm_rag.cli.demo import demo
from stream2llm_rag.cli.doctor import doctor
from stream2llm_rag.cli.index import index_app
from stream2llm_rag.cli.serve import serve
from stream2llm_rag.cli.simulate import simulate
from stream2llm_rag.cli.terminal import show_error
from stream2llm_rag.cli.timeline import timeline
from stream2llm_rag.errors import Stream2LLMError


class _Commands(TyperGroup):
    """Errors that the library raises on purpose are shown as one line each, and end the command with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Stream2LLMError as error:
            show_error(Console(stderr=True), error)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
for command in (ask, bench, calibrate, demo, doctor, simulate, timeline):
    app.command()(command)
app.add_typer(index_app, name="index")
# vLLM's parser reads all that follows, and knows what --help there means.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(serve)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stream2llm {__version__}")
        raise typer.Exit


@app.callback()
def _stream2llm(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Answers over retrieved text that start the moment retrieval ends."""
