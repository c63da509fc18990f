"""A proxy that a crawler goes through. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler.addresses import PrivateHosts

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """``url`` may hold credentials. Its own address is checked as any other, unless it ``may_be_private``."""

    url: str = field(repr=False)
    may_be_private: bool = False

    @classmethod
    def parse(cls, url: str | None, allow_private: Collection[str]) -> Proxy | None:
        """Read ``http[s]://[user:password@]host[:port]``; None for none. InvalidInputError for anything else.

        ``allow_private`` names the hosts where a proxy may have a private address, as ``allow_private_hosts`` does for pages.
        """
        allowed = PrivateHosts.parse(allow_private, "allow_private_proxies")
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError):
            host = port = None
        if not host or not _is_bare(parts) or not url.isprintable():
            shown = url if isinstance(url, str) and "@" not in url else "something else"  # a password is not for messages
            raise InvalidInputError(f"proxy is 'http://host:port', with credentials where it wants them, but {shown!r} came.")
        return cls(url, allowed.cover(host, port or _DEFAULT_PORTS[parts.scheme]))


def _is_bare(parts: SplitResult) -> bool:
    """Whether there is nothing but a scheme and a host."""
    return parts.scheme in _DEFAULT_PORTS and parts.path in ("", "/") and not parts.query and not parts.fragment
