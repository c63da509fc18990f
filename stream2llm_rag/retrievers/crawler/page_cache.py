"""Pages kept on disk from one crawl to the next, by the rules of HTTP caching (RFC 9111).

hishel decides what may be stored, how long it is fresh and how it is checked again, and keeps it in SQLite; nothing of that is
ours. aiohttp-client-cache was not taken: it reads each body whole before anybody can look at it (``response.read()`` in
``CachedResponse.from_client_response``), past every limit on what comes out of decompression, and follows redirects on its own.
Here the fetcher streams the body under its limits, and only then hands it over.

What is kept never stands in for a check. A page is found only under the same permission to reach private hosts, the same proxy
and the same given cookies under which it came (``scope``), and its size, its content type and robots.txt are looked at anew.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from hishel import (
    AnyState,
    CacheMiss,
    CacheOptions,
    Entry,
    FromCache,
    Headers,
    IdleClient,
    InvalidateEntries,
    NeedRevalidation,
    NeedToBeUpdated,
    Request,
    Response,
    SqliteStorage,
    StoreAndUse,
)

from stream2llm_rag.errors import InvalidInputError, LifecycleError

_FILE_NAME = "pages.sqlite"
_OPTIONS = CacheOptions(shared=False)
_KEPT_HEADERS = ("cache-control", "content-type", "etag", "expires", "last-modified", "vary")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A page as it was stored: the Content-Type of its answer, and its body, decompressed."""

    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the cache says to a request.

    ``stored`` is there and ``is_fresh``: nothing needs to be asked. Else the request goes out with ``headers``, which are
    conditional where ``stored`` waits to be confirmed.
    """

    key: str
    state: FromCache | NeedRevalidation | CacheMiss
    stored: Stored | None
    outdated: tuple[UUID, ...] = ()

    @property
    def is_fresh(self) -> bool:
        """Whether what is stored may be used without asking."""
        return isinstance(self.state, FromCache)

    @property
    def headers(self) -> Mapping[str, str]:
        """What the request must have."""
        return {} if isinstance(self.state, FromCache) else dict(self.state.request.headers)


class PageCache:
    """Keeps pages in ``folder``, at most about ``max_bytes`` of them: those used longest ago go first.

    Several crawlers, also of several programs, may share a folder. Disk work is done in a thread, one thing at a time.
    InvalidInputError where the folder cannot be written to, or holds something else.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = 1_000_000_000) -> None:
        if not isinstance(folder, str | Path) or not str(folder):
            raise InvalidInputError(f"cache is a folder, or a PageCache, but {folder!r} came.")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise InvalidInputError(f"max_bytes is a whole number, at least 1, but {max_bytes!r} came.")
        self._folder = Path(folder).expanduser()
        self._max_bytes = max_bytes
        self._storage: SqliteStorage | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Make the folder and the file where they are missing. LifecycleError where another crawler has this object open."""
        if self._thread is not None:
            raise LifecycleError("This PageCache is open already. Make one for each crawler; they may share a folder.")
        self._thread = ThreadPoolExecutor(1, "page-cache")
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the file, once what was begun is done."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            try:
                await asyncio.to_thread(thread.shutdown)
            finally:
                if self._storage is not None:
                    self._storage.close()
                    self._storage = None

    async def look_up(self, url: str, headers: Mapping[str, str], *, scope: str, max_bytes: int) -> Lookup:
        """What is known of ``url``, asked for with these ``headers``. A body of more than ``max_bytes`` counts as unknown."""
        request = Request("GET", url, Headers(headers))
        return await self._run(lambda storage: _look_up(storage, f"{scope} {url}", request, max_bytes))

    async def confirm(self, lookup: Lookup, headers: Mapping[str, str]) -> Stored | None:
        """The server answered 304: the page as it is stored, fresh again. None where it is not the one that was asked about."""
        return await self._run(lambda storage: _confirm(storage, lookup, _kept(headers)))

    async def store(self, lookup: Lookup, stored: Stored, headers: Mapping[str, str]) -> None:
        """The server answered with a page: keep it where it may be kept, and drop what it takes the place of."""
        kept = _kept(headers)
        await self._run(lambda storage: _store(storage, lookup, stored, kept if _is_whole(kept, headers) else None))

    def _open(self) -> None:
        with ExitStack() as stack:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = sqlite3.connect(self._folder / _FILE_NAME, check_same_thread=False, isolation_level=None)
                stack.callback(file.close)
                file.execute("PRAGMA schema_version")  # an error here where it is no database; hishel would only log it
                # Nobody reads a body for longer than a minute here; what is left out is deleted after that.
                storage = SqliteStorage(connection=file, max_size=self._max_bytes, soft_delete_ttl=60.0)
                storage.get_entries("")
            except (OSError, RuntimeError, sqlite3.Error) as error:
                raise InvalidInputError(f"cache={str(self._folder)!r} cannot be used: {error}. Name another folder.") from error
            stack.pop_all()
        self._storage = storage

    async def _run(self, work: Callable[[SqliteStorage], _T]) -> _T:
        assert self._storage is not None  # its crawler is open
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._storage)


def _look_up(storage: SqliteStorage, key: str, request: Request, max_bytes: int) -> Lookup:
    entries = storage.get_entries(key)
    outdated = tuple(entry.id for entry in entries)
    state = IdleClient(_OPTIONS).next(request, entries)
    if isinstance(state, NeedRevalidation):
        state = replace(state, revalidating_entries=state.revalidating_entries[:1])
    if not isinstance(state, CacheMiss):
        entry = state.entry if isinstance(state, FromCache) else state.revalidating_entries[0]
        if (stored := _read(entry, max_bytes)) is not None:
            return Lookup(key, state, stored, outdated)
    return Lookup(key, CacheMiss(_OPTIONS, request), None, outdated)


def _read(entry: Entry, max_bytes: int) -> Stored | None:
    body = bytearray()
    try:
        for chunk in _chunks(entry.response):
            body += chunk
            if len(body) > max_bytes:
                return None
    except (RuntimeError, sqlite3.Error):  # it was deleted meanwhile, or cannot be read
        return None
    return Stored(entry.response.headers.get("content-type", ""), bytes(body))


def _confirm(storage: SqliteStorage, lookup: Lookup, headers: Mapping[str, str]) -> Stored | None:
    assert isinstance(lookup.state, NeedRevalidation)
    state: AnyState = lookup.state.next(Response(304, Headers(headers)))
    if isinstance(state, InvalidateEntries):
        for entry_id in state.entry_ids:
            storage.remove_entry(entry_id)
        state = state.next_state
    if not isinstance(state, NeedToBeUpdated):
        return None
    for entry in state.updating_entries:
        storage.update_headers(entry.id, entry.response.headers)
    return lookup.stored


def _store(storage: SqliteStorage, lookup: Lookup, stored: Stored, headers: Mapping[str, str] | None) -> None:
    for entry_id in lookup.outdated:
        storage.remove_entry(entry_id)
    if headers is None:
        return
    assert not isinstance(lookup.state, FromCache)
    asked = lookup.state.original_request if isinstance(lookup.state, NeedRevalidation) else lookup.state.request
    state = CacheMiss(_OPTIONS, asked).next(Response(200, Headers(headers)))
    if isinstance(state, StoreAndUse):
        response = replace(state.response, stream=iter((stored.body,)))
        for _ in _chunks(storage.create_entry(asked, response, lookup.key).response):
            pass  # it is written as it is read


def _chunks(response: Response) -> Iterator[bytes]:
    assert isinstance(response.stream, Iterator)  # of a storage that does not await
    return response.stream


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """What the rules need, as far as it is text. Date becomes the time when the answer was made, as its Date, its Age and our
    clock tell (4.2.3).
    """
    age = headers.get("age", "")
    now_s = time.time() - (int(age) if age.isascii() and age.isdigit() and len(age) < 10 else 0)
    try:
        made_s = min(now_s, parsedate_to_datetime(headers.get("date", "")).timestamp())
    except (ValueError, OverflowError):
        made_s = now_s
    kept = {name: headers[name] for name in _KEPT_HEADERS if name in headers and _is_text(headers[name])}
    return {**kept, "date": formatdate(made_s, usegmt=True)}


def _is_whole(kept: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    """Whether nothing that the rules need had to be left out. What was could have forbidden to keep the page."""
    return all(name in kept for name in _KEPT_HEADERS if name in headers)


def _is_text(value: str) -> bool:
    """Whether a header was UTF-8: aiohttp stands in for other bytes with surrogates, which cannot be stored."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
