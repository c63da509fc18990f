"""What one client may ask of a server, and who counts as one. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from stream2llm_rag.errors import CapacityError, InvalidInputError


@dataclass(frozen=True, slots=True)
class Limits:
    """A server's limits on streams; durations are in seconds.

    A connection is dropped after ``heartbeat_timeout_s`` without any message, after ``idle_timeout_s`` without one that brings
    the stream forward, and when it did not take what was sent for ``send_timeout_s``. ``max_context_tokens`` is the length that
    the prompt of a stream stays below; None leaves it to the model.
    """

    max_message_bytes: int = 4 * 2**20
    max_context_tokens: int | None = None
    max_streams_per_client: int = 256
    heartbeat_timeout_s: float = 30.0
    idle_timeout_s: float = 300.0
    send_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInputError(f"{name} must be above 0, got {value}.")


class Clients:
    """How many streams each client has."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._num_streams: Counter[str] = Counter()

    @property
    def num_streams(self) -> int:
        """Streams of all clients."""
        return self._num_streams.total()

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Hold a place for one stream of ``client``; CapacityError when it has as many as it may."""
        if self._num_streams[client] >= self._max_streams:
            raise CapacityError(
                f"this client has {self._num_streams[client]} streams, the limit is {self._max_streams}. "
                "Try again when some have ended."
            )
        self._num_streams[client] += 1
        try:
            yield
        finally:
            self._num_streams[client] -= 1
            if not self._num_streams[client]:
                del self._num_streams[client]


def client_of(headers: Mapping[str, str], host: str | None, *, has_keys: bool) -> str:
    """Who a connection belongs to: the holder of its API key where the server asks for one, else the host it comes from."""
    if has_keys:
        _, _, key = headers.get("authorization", "").partition(" ")  # "Bearer" comes in any case (RFC 9110, 11.1)
        return hashlib.sha256(key.encode()).hexdigest()
    return host or "local"


def is_origin_allowed(headers: Mapping[str, str], allowed: Sequence[str]) -> bool:
    """Whether a browser's page may connect. Browsers hold no WebSocket to the same-origin policy (RFC 6455, 10.2).

    Programs send no Origin and are let through. A page of this very server is known only where its name is an address or
    ``localhost``: any other name may have been bound to this machine by whoever owns it (DNS rebinding).
    """
    origin = headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return True
    try:
        place = urlsplit(origin)
    except ValueError:  # as of http://[
        return False
    return place.netloc.lower() == headers.get("host", "").lower() and _is_fixed(place.hostname or "")


def _is_fixed(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
