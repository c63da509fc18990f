"""Search engines as the start of a crawl: what one is, an adapter for SearxNG, one for any function, and a stand-in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import aiohttp

from stream2llm_rag.errors import CrawlError, InvalidInputError

_MAX_ANSWER_BYTES = 5_000_000
_URL_KEYS = ("url", "link", "href")  # as the search tools of the frameworks call it
_TITLE_KEYS = ("title", "name")


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A page that a search engine found. ``url`` is as the engine gave it: the crawl checks it as any other."""

    url: str
    title: str | None = None


@runtime_checkable
class SearchProvider(Protocol):
    """Finds pages where a crawl can start."""

    async def search(self, query: str) -> Sequence[SearchHit]:
        """Hits, best first. Whatever it raises is reported as an event of the crawl, which goes on with its other seeds."""
        ...


class InMemorySearch:
    """A stand-in: the same hits for every question. ``queries`` are the questions that came."""

    def __init__(self, hits: Sequence[SearchHit]) -> None:
        self._hits = tuple(hits)
        self.queries: list[str] = []

    async def search(self, query: str) -> Sequence[SearchHit]:
        """The hits."""
        self.queries.append(query)
        return self._hits


class FunctionSearch:
    """Makes a SearchProvider of an async function, such as the ``ainvoke`` or ``acall`` of a framework's search tool.

    ``function(query)`` returns a list, or the JSON text of one, or a mapping with one under ``"results"``. Its items are URLs,
    or mappings with a ``url``, ``link`` or ``href``. CrawlError for anything else.
    """

    def __init__(self, function: Callable[[str], Awaitable[Any]]) -> None:
        self._function = function

    async def search(self, query: str) -> Sequence[SearchHit]:
        """What the function finds, best first."""
        return parse_hits(await self._function(query))


class SearxNG:
    """The JSON API of a SearxNG instance at ``url``, whose settings must list ``json`` under ``search.formats``.

    ``parameters`` are those of its search API, such as ``{"language": "en", "categories": "it"}``. The instance is one that you
    trust: its address may be private. The pages that it finds meet every check of the crawl.
    """

    def __init__(self, url: str, *, parameters: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise InvalidInputError(f"SearxNG needs the URL of an instance, but {url!r} came. Write: 'http://localhost:8888'.")
        self._url = url.rstrip("/").removesuffix("/search") + "/search"
        self._parameters = dict(parameters or {})
        self._timeout_s = timeout_s

    async def search(self, query: str) -> Sequence[SearchHit]:
        """What the instance finds, best first. CrawlError where it does not answer with JSON in time."""
        try:
            return parse_hits(await self._answer({**self._parameters, "q": query, "format": "json"}))
        except TimeoutError as error:
            raise CrawlError(f"SearxNG at {self._url} did not answer within {self._timeout_s:g} s.") from error
        except aiohttp.ClientError as error:
            raise CrawlError(f"SearxNG at {self._url} could not be asked: {error!r}") from error

    async def _answer(self, parameters: Mapping[str, str]) -> str:
        async with (
            asyncio.timeout(self._timeout_s),
            aiohttp.ClientSession() as session,
            session.get(self._url, params=parameters, allow_redirects=False) as response,
        ):
            if response.status == 403:
                raise CrawlError(f"SearxNG at {self._url} refuses JSON. Add `json` to `search.formats` in its settings.yml.")
            if response.status != 200:
                raise CrawlError(f"SearxNG at {self._url} answered HTTP {response.status}.")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise CrawlError(f"SearxNG at {self._url} answered more than {_MAX_ANSWER_BYTES} bytes.")
            return body.decode("utf-8", "replace")


def parse_hits(found: Any) -> tuple[SearchHit, ...]:
    """The hits in what a search engine or tool gave, as :class:`FunctionSearch` describes it."""
    if isinstance(found, str | bytes):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise CrawlError(f"A search gave text that is no JSON: {found[:80]!r}") from error
    if isinstance(found, Mapping):
        found = found.get("results")
    if not isinstance(found, list | tuple):
        raise CrawlError(f"A search gives a list of hits, but {type(found).__name__} came.")
    return tuple(_parse_hit(item) for item in found)


def _parse_hit(item: Any) -> SearchHit:
    if isinstance(item, str):
        return SearchHit(item)
    if isinstance(item, Mapping):
        for key in _URL_KEYS:
            if isinstance(url := item.get(key), str):
                titles = (item.get(key) for key in _TITLE_KEYS)
                return SearchHit(url, next((title for title in titles if isinstance(title, str)), None))
    raise CrawlError(f"A hit of a search is a URL or a mapping with one of {', '.join(_URL_KEYS)}, but {item!r:.80} came.")
