"""``stream2llm serve``"""

from __future__ import annotations

import typer  # noqa: TC002 - read from the annotation at run time


def serve(context: typer.Context) -> None:
    """Serve a model over HTTP, with a WebSocket for context that streams in.

    The arguments are those of `vllm serve`, and some more: `stream2llm serve --help=Stream2LLM`.
    """
    from stream2llm_rag.serve.server import main

    main(context.args)
