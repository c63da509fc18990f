"""The protocol as a JSON Schema, made of the structs in ``messages``; ``python -m stream2llm_rag.serve.schema`` prints it."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from stream2llm_rag.serve.messages import PATH, SUBPROTOCOL, ClientMessage, ServerMessage


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12); ``$defs`` has each message, and both unions as ``ClientMessage`` and ``ServerMessage``."""
    (client, server), parts = msgspec.json.schema_components([ClientMessage, ServerMessage], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SUBPROTOCOL,
        "description": f"Messages on the WebSocket {PATH}, one JSON text each; see docs/serve.md for their order.",
        "anyOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {"ClientMessage": client, "ServerMessage": server, **dict(sorted(parts.items()))},
    }


def text() -> str:
    """The schema as it is published."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
