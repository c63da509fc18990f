"""URLs in one spelling each, and which of them belong to a crawl. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from string import ascii_letters, digits
from typing import Literal, NewType
from urllib.parse import urljoin, urlsplit, urlunsplit

from courlan.clean import clean_query
from w3lib.url import canonicalize_url, safe_url_string

from stream2llm_rag.errors import InvalidInputError

CanonicalUrl = NewType("CanonicalUrl", str)
"""An absolute http(s) URL as :func:`canonicalize` spells it: with a ``/`` after the host, and no credentials or fragment."""

ScopeKind = Literal["host", "prefix", "any"]

MAX_URL_LENGTH = 2_048  # the limit of sitemaps.org; longer links are generated junk, and every queued URL costs memory
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ABSOLUTE = re.compile(r"https?://[\w\[]")  # to join it with a base takes as long as the rest
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_PLAIN_QUERY = re.compile(r"[A-Za-z0-9._~&=-]*")
_UNRESERVED = frozenset(f"{ascii_letters}{digits}-._~")  # RFC 3986, 2.3


def canonicalize(url: str, base: str = "") -> CanonicalUrl | None:
    """``url``, resolved against ``base``, as RFC 3986 (6.2) lets it be spelled: encoding, dots, host, port, no fragment.

    It is what is asked for, so a query keeps its order and its ``/``, ``;`` and ``=``: a site may make something of them, and
    its robots.txt speaks of the address as the site writes it. None for what a crawler cannot fetch: other schemes, no host,
    credentials, an impossible port, or too long a URL.
    """
    try:
        absolute = url.strip()
        if not _ABSOLUTE.match(absolute):
            absolute = urljoin(base, absolute)
    except ValueError:
        return None
    # Most links of a page stand on its neighbours, too. The longest are not worth their memory.
    return _canonical(absolute) if len(absolute) <= MAX_URL_LENGTH else _canonical.__wrapped__(absolute)


@lru_cache(maxsize=4096)
def _canonical(absolute: str) -> CanonicalUrl | None:
    try:
        parts = urlsplit(canonicalize_url(absolute))
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc:
        return None
    host = parts.netloc.removesuffix(f":{port}").removesuffix(".")  # the root of all names (RFC 1034, 3.1), the same host
    if not _HOST.fullmatch(host):
        return None
    netloc = host if port in (None, _DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"
    query = _query_of(absolute) if "?" in absolute else ""
    canonical = urlunsplit((parts.scheme, netloc, parts.path or "/", query, ""))
    return CanonicalUrl(canonical) if len(canonical) <= MAX_URL_LENGTH else None


def _query_of(absolute: str) -> str:
    """Each character in one spelling (RFC 3986, 6.2.2); w3lib's own would take the query for a form that was filled in."""
    return _ESCAPE.sub(_escape, urlsplit(safe_url_string(absolute)).query)


def _escape(match: re.Match[str]) -> str:
    code = match[1]
    if code is None:
        return "%25"
    return char if (char := chr(int(code, 16))) in _UNRESERVED else match[0].upper()


def key_of(url: CanonicalUrl) -> CanonicalUrl:
    """The same for two URLs of one page: no tracking, the parameters of the query in order. For comparing, not for asking."""
    if "?" not in url:
        return url
    address, _, query = (stripped := strip_tracking(url)).partition("?")
    if not _PLAIN_QUERY.fullmatch(query):
        return CanonicalUrl(canonicalize_url(stripped))
    # The same in a third of the time: a page can have thousands of links, and this runs on the event loop.
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&") if pair)
    in_order = "&".join(f"{name}={value.replace('=', '%3D')}" for name, value in pairs)
    return CanonicalUrl(f"{address}?{in_order}" if in_order else address)


def strip_tracking(url: CanonicalUrl) -> CanonicalUrl:
    """``url`` without the query parameters that only say where a visitor came from."""
    if "?" not in url:
        return url
    parts = urlsplit(url)
    # One parameter at a time: courlan's own pass over a whole query drops those that have no value, and they can matter.
    kept = [pair for pair in parts.query.split("&") if not _is_tracker(pair.partition("=")[0])]
    return CanonicalUrl(urlunsplit(parts._replace(query="&".join(kept))))


@lru_cache(maxsize=1024)
def _is_tracker(parameter: str) -> bool:
    return not clean_query(f"{parameter}=1")


def origin_of(url: CanonicalUrl) -> str:
    """``scheme://host[:port]`` (RFC 6454): what robots.txt and politeness are about."""
    return url[: url.index("/", url.index("//") + 2)]


def site_of(url: CanonicalUrl) -> str:
    """``host[:port]``, the port only where it is not the scheme's own: http and https on their usual ports are one site."""
    return url.split("/", 3)[2]


def path_of(url: CanonicalUrl) -> str:
    """What follows the host, with its query, if any."""
    return url[len(origin_of(url)) :]


def host_and_port(url: CanonicalUrl) -> tuple[str, int]:
    """The host (IPv6 without brackets) and the port, given or implied."""
    parts = urlsplit(url)
    assert parts.hostname is not None  # canonicalize() let it through
    return parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]


def parse_seed(seed: str) -> CanonicalUrl:
    """The canonical form of a seed as the caller wrote it. InvalidInputError says what is wrong with it."""
    example = "Write an absolute URL, such as 'https://docs.python.org/3/'."
    if not isinstance(seed, str) or not seed.strip():
        raise InvalidInputError(f"A seed must be a URL, but {seed!r} came. {example}")
    try:
        parts = urlsplit(seed.strip())
    except ValueError as error:
        raise InvalidInputError(f"Seed {seed!r} is no URL: {error}. {example}") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidInputError(f"Seed {seed!r} has the scheme {parts.scheme!r}; only http and https can be crawled. {example}")
    if not parts.hostname:
        raise InvalidInputError(f"Seed {seed!r} has no host. {example}")
    url = canonicalize(seed)
    if url is None:
        raise InvalidInputError(
            f"Seed {seed!r} has credentials, a bad host or port, or more than {MAX_URL_LENGTH} characters. {example}"
        )
    return url


@dataclass(frozen=True, slots=True)
class Scope:
    """Which links and redirects a crawl follows. Seeds themselves are always fetched.

    ``roots`` are what a URL must begin with, as ``(site, path)`` pairs; empty for any.
    """

    kind: ScopeKind
    roots: frozenset[tuple[str, str]]
    allow: tuple[re.Pattern[str], ...] = ()
    deny: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def parse(
        cls, kind: ScopeKind, seeds: Sequence[CanonicalUrl], allow: Sequence[str] = (), deny: Sequence[str] = ()
    ) -> Scope:
        """The scope of ``seeds``: their sites ("host"), their sites below the last ``/`` of their path ("prefix"), or "any"."""
        if kind not in ("host", "prefix", "any"):
            raise InvalidInputError(f"scope is 'host', 'prefix' or 'any', but {kind!r} came.")
        return cls(kind, frozenset(), _compile("allow", allow), _compile("deny", deny)).including(seeds)

    def including(self, seeds: Sequence[CanonicalUrl]) -> Scope:
        """The scope of these seeds too."""
        if self.kind == "any":
            return self
        roots = {
            (site_of(seed), urlsplit(seed).path.rpartition("/")[0] + "/" if self.kind == "prefix" else "/") for seed in seeds
        }
        return replace(self, roots=self.roots | roots)

    def refusal(self, url: CanonicalUrl) -> str | None:
        """Why ``url`` is not followed; None where it is."""
        site, path = site_of(url), urlsplit(url).path
        if self.kind != "any" and not any(site == root and path.startswith(prefix) for root, prefix in self.roots):
            return "it is outside the scope of the seeds"
        if self.allow and not any(pattern.search(url) for pattern in self.allow):
            return "no allow pattern matches it"
        for pattern in self.deny:
            if pattern.search(url):
                return f"the deny pattern {pattern.pattern!r} matches it"
        return None


def _compile(name: str, patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    if isinstance(patterns, str):
        raise InvalidInputError(f"{name} is a sequence of patterns, not one string. Write: [{patterns!r}]")
    try:
        return tuple(re.compile(pattern) for pattern in patterns)
    except re.error as error:
        raise InvalidInputError(f"{name} has {error.pattern!r}, which is no regular expression: {error}.") from error
