"""Where a served engine listens, and the key to it. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.serve.messages import PATH

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def stream_url(url: str) -> str:
    """The WebSocket of the server at ``url``: its root, its OpenAI base URL (``.../v1``), or the WebSocket itself."""
    if not _is_address(url):
        may_hold_secret = any(mark in str(url) for mark in "@?#")  # where it ends, only an address could say
        raise InvalidInputError(
            f"{'What came, not shown as it may hold a secret,' if may_hold_secret else repr(url)} is no address of a server. "
            "Write http://HOST:PORT, or https://...; a user, if there is one, as in http://USER:PASSWORD@HOST:PORT."
        )
    parts = urlsplit(url)
    base = parts.path.rstrip("/").removesuffix(PATH).removesuffix("/v1")
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, base + PATH, parts.query, ""))


def without_secrets(url: str) -> str:
    """``url`` as an error may show it: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def authorization(api_key: str | None) -> dict[str, str]:
    """The header with ``api_key``, if there is one. InvalidInputError, which does not show it, where no header takes it."""
    if not api_key:
        return {}
    if not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
        raise InvalidInputError(
            "api_key must be printable ASCII text with no blanks round it. Is there a line break at its end, as in a file? "
            "Write api_key=key.strip()."
        )
    return {"Authorization": f"Bearer {api_key}"}


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as it will be looked up
    except ValueError:
        return False
    has_whole_user = parts.username is None or parts.password is not None
    return parts.scheme in _SCHEMES and bool(host) and has_whole_user and port != 0 and not any(map(str.isspace, host))
