"""Where a served engine listens. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.serve.messages import PATH

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def stream_url(url: str) -> str:
    """The WebSocket of the server at ``url``: its root, its OpenAI base URL (``.../v1``), or the WebSocket itself."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise InvalidInputError(f"{url!r} is no address of a server. Write http://HOST:PORT, or https://...")
    base = parts.path.rstrip("/").removesuffix(PATH).removesuffix("/v1")
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, base + PATH, parts.query, ""))
