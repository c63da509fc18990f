from __future__ import annotations

import asyncio
import gzip
import sqlite3
from email.utils import formatdate
from tempfile import TemporaryDirectory

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from stream2llm_rag.errors import CrawlError, InvalidInputError, LifecycleError
from stream2llm_rag.retrievers.crawler import PageCache, WebCrawler
from stream2llm_rag.retrievers.crawler.page_cache import Stored

from .conftest import crawl

pytestmark = pytest.mark.usefixtures("warm", "leaves_nothing")


class Versioned:
    """A page with validators and other headers; ``asked`` are the conditions under which it was asked for."""

    def __init__(self, site, path="/", **headers):
        self.text = "first"
        self.tag = '"1"'
        self.asked = []
        self.headers = headers
        site.pages[path] = self

    async def __call__(self, request):
        self.asked.append(request.headers.get("If-None-Match") or request.headers.get("If-Modified-Since"))
        if self.tag and request.headers.get("If-None-Match") == self.tag:
            return web.Response(status=304, headers={"ETag": self.tag})
        headers = {"Content-Type": "text/html", **({"ETag": self.tag} if self.tag else {}), **self.headers}
        return web.Response(body=f"<p>{self.text}</p>".encode(), headers=headers)


@pytest.fixture
def cached(crawler_on, tmp_path):
    """Crawl "/" once more with the same cache folder; the text that came."""

    async def again(*seeds, **settings):
        result = await crawl(crawler_on(*(seeds or "/"), **{"cache": tmp_path / "cache", "obey_robots": False, **settings}))
        return [document.text for document in result.documents], result

    return again


async def test_a_fresh_page_is_not_asked_for_again(site, cached):
    page = Versioned(site, **{"Cache-Control": "max-age=600"})
    assert (await cached())[0] == ["first"]
    page.text = "second"
    texts, result = await cached()
    assert texts == ["first"]
    assert page.asked == [None]
    [download] = [step for step in result.events[-1].steps if step.kind == "download"]
    assert download.detail == "12 bytes, from the cache"


async def test_a_page_that_may_be_stale_is_confirmed_and_comes_from_the_disk(site, cached):
    page = Versioned(site, **{"Cache-Control": "no-cache"})
    await cached()
    texts, result = await cached()
    assert texts == ["first"]
    assert page.asked == [None, '"1"']
    [download] = [step for step in result.events[-1].steps if step.kind == "download"]
    assert download.detail == "12 bytes, as they are in the cache"


async def test_a_page_that_changed_takes_the_place_of_the_old_one(site, cached):
    page = Versioned(site, **{"Cache-Control": "no-cache"})
    await cached()
    page.text, page.tag = "second", '"2"'
    assert (await cached())[0] == ["second"]
    assert (await cached())[0] == ["second"]
    assert page.asked == [None, '"1"', '"2"']


async def test_a_page_without_a_tag_is_asked_for_by_its_date(site, cached):
    modified = formatdate(1e9, usegmt=True)
    page = Versioned(site, **{"Last-Modified": modified, "Cache-Control": "no-cache"})
    page.tag = None
    await cached()
    await cached()
    assert page.asked == [None, modified]


@pytest.mark.parametrize(
    "headers",
    [
        {"Cache-Control": "no-store"},
        {"Cache-Control": "max-age=60", "Age": "100"},
        {"Cache-Control": "max-age=60", "Date": formatdate(1e9, usegmt=True)},
        {"Expires": "0"},
        {"Cache-Control": "max-age=600", "Vary": "*"},
    ],
)
async def test_what_may_not_be_used_unasked_is_asked_for(site, cached, headers):
    page = Versioned(site, **headers)
    page.tag = None
    await cached()
    page.text = "second"
    assert (await cached())[0] == ["second"]


async def test_a_confirmation_of_another_page_is_not_believed(site, cached, monkeypatch):
    page = Versioned(site, **{"Cache-Control": "no-cache"})
    await cached()

    async def liar(request):
        if "If-None-Match" in request.headers:
            return web.Response(status=304, headers={"ETag": '"another"'})
        return await page(request)

    monkeypatch.setattr("stream2llm_rag.retrievers.crawler.retries._FIRST_WAIT_S", 0.01)
    site.pages["/"] = liar
    page.text = "second"
    texts, result = await cached()
    assert texts == ["second"]
    assert [event.kind for event in result.events] == ["retry", "fetch"]


async def test_a_page_from_a_private_host_is_only_for_those_who_may_go_there(site, cached):
    Versioned(site, **{"Cache-Control": "max-age=600"})
    await cached()
    with pytest.raises(CrawlError, match="is a loopback address"):
        await cached(allow_private_hosts=())


async def test_cookies_are_not_written_down(site, cached, tmp_path):
    Versioned(site, **{"Cache-Control": "max-age=600", "Vary": "Cookie"})
    await cached(cookies={site.url("/"): {"session": "a-secret-of-mine"}})
    assert (await cached(cookies={site.url("/"): {"session": "a-secret-of-mine"}}))[0] == ["first"]
    files = [file.read_bytes() for file in (tmp_path / "cache").iterdir()]
    assert files
    assert not any(b"a-secret-of-mine" in content for content in files)


async def test_what_came_for_one_s_cookies_is_not_for_others(site, cached):
    page = Versioned(site, **{"Cache-Control": "max-age=600"})
    await cached(cookies={site.url("/"): {"name": "one"}})
    page.text = "second"
    assert (await cached(cookies={site.url("/"): {"name": "other"}}))[0] == ["second"]
    assert (await cached(cookies={site.url("/"): {"name": "one"}}))[0] == ["first"]


async def test_limits_hold_for_what_is_stored(site, cached):
    body = b"<p>" + b"x " * 50_000
    headers = {"Content-Encoding": "gzip", "Cache-Control": "max-age=600"}
    site.answer("/", gzip.compress(body), headers=headers)
    [text], _ = await cached()
    assert len(text) > 90_000
    with pytest.raises(CrawlError, match="larger than 1000 bytes"):
        await cached(max_page_bytes=1_000)
    with pytest.raises(CrawlError, match="byte limit"):
        await cached(max_total_bytes=1_000)


async def test_robots_txt_holds_for_what_is_stored(site, cached):
    Versioned(site, **{"Cache-Control": "max-age=600"})
    await cached()
    site.answer("/robots.txt", "User-agent: *\nDisallow: /", content_type="text/plain")
    with pytest.raises(CrawlError, match="disallows"):
        await cached(obey_robots=True)


async def test_a_redirect_is_followed_each_time(site, cached):
    site.answer("/", status=301, headers={"Location": "/a", "Cache-Control": "max-age=600"})
    Versioned(site, "/a", **{"Cache-Control": "max-age=600"})
    await cached()
    assert (await cached())[0] == ["first"]
    assert site.requests == ["/", "/a", "/"]


async def test_pages_from_the_cache_do_not_wait_for_their_turn(site, cached):
    for path in ("/", "/a", "/b"):
        Versioned(site, path, **{"Cache-Control": "max-age=600"}).text = path
    await cached("/", "/a", "/b")
    texts, _ = await cached("/", "/a", "/b", delay_s=1_000.0)
    assert sorted(texts) == ["/", "/a", "/b"]


async def test_the_cache_is_bounded(site, cached, tmp_path, monkeypatch):
    now_s = 1e9
    monkeypatch.setattr("hishel._core._storages._sync_sqlite.time.time", lambda: now_s)
    for i in range(10):
        site.answer(f"/{i}", b"<p>" + bytes([65 + i]) * 100_000, headers={"Cache-Control": "max-age=600"})
        await cached(f"/{i}", cache=PageCache(tmp_path / "cache", max_bytes=500_000))
        now_s += 100.0  # what is read is kept for a minute
    with sqlite3.connect(tmp_path / "cache" / "pages.sqlite") as database:
        [[num_bytes]] = database.execute("SELECT SUM(LENGTH(chunk_data)) FROM streams")
        [[keys]] = database.execute("SELECT GROUP_CONCAT(CAST(cache_key AS TEXT)) FROM entries")
    database.close()
    assert 100_000 < num_bytes <= 600_000
    assert keys.endswith("/9")


async def test_what_is_no_folder_for_a_cache_is_said_before_anything_is_fetched(site, crawler_on, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pages.sqlite").write_text("no database, but more than a header's worth of text" * 10)
    for folder in ("file", "other"):
        with pytest.raises(InvalidInputError, match="Name another folder"):
            await crawl(crawler_on("/", cache=tmp_path / folder))
    assert site.requests == []


async def test_one_cache_is_for_one_crawler_at_a_time(site, crawler_on, tmp_path):
    site.page("/")
    cache = PageCache(tmp_path)
    async with crawler_on("/", cache=cache):
        with pytest.raises(LifecycleError, match="open already"):
            await crawl(crawler_on("/", cache=cache))
    assert len((await crawl(crawler_on("/", cache=cache))).documents) == 1


@pytest.mark.parametrize("cache", [7, "", True])
def test_what_is_no_cache_is_refused(cache):
    with pytest.raises(InvalidInputError, match="cache is a folder"):
        WebCrawler(["http://h/"], cache=cache)


@pytest.mark.parametrize("max_bytes", [0, "9", 1.5, None, True])
def test_what_is_no_size_is_refused(tmp_path, max_bytes):
    with pytest.raises(InvalidInputError, match="max_bytes is a whole number"):
        PageCache(tmp_path, max_bytes=max_bytes)


async def test_a_file_that_cannot_be_used_is_closed(tmp_path, monkeypatch):
    opened = []

    def connect(*args, **kwargs):
        opened.append(connected(*args, **kwargs))
        return opened[-1]

    connected = sqlite3.connect
    monkeypatch.setattr("stream2llm_rag.retrievers.crawler.page_cache.sqlite3.connect", connect)
    (tmp_path / "pages.sqlite").write_text("no database, but more than a header's worth of text" * 10)
    with pytest.raises(InvalidInputError, match="Name another folder"):
        await PageCache(tmp_path).open()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


async def raw(request, status, headers, body=b""):
    """Answer with headers that no HTTP library sends."""
    lines = [b"%s: %s" % (name.encode(), value) for name, value in headers.items()]
    request.transport.write(b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"Connection: close", b"", body]))
    request.transport.close()
    return await asyncio.Future()  # cancelled with the connection


@pytest.mark.parametrize("name", ["ETag", "Cache-Control", "Vary"])
async def test_a_page_with_a_header_that_is_no_text_is_not_kept_and_nothing_is_logged(site, cached, caplog, name):
    asked = []

    async def handler(request):
        asked.append(request.headers.get("If-None-Match"))
        headers = {"Content-Type": b"text/html", "Cache-Control": b"max-age=600", "ETag": b'"1"', "Content-Length": b"12"}
        return await raw(request, b"200 OK", {**headers, name: b"a\xff"}, b"<p>first</p>")

    site.pages["/"] = handler
    for _ in range(2):
        assert (await cached())[0] == ["first"]
    assert asked == [None, None]
    assert caplog.records == []


async def test_a_confirmation_with_a_header_that_is_no_text_confirms(site, cached, caplog):
    page = Versioned(site, **{"Cache-Control": "no-cache"})
    await cached()

    async def handler(request):
        return await raw(request, b"304 Not Modified", {"ETag": page.tag.encode(), "Cache-Control": b"a\xff"})

    site.pages["/"] = handler
    assert (await cached())[0] == ["first"]
    assert caplog.records == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["http://h/", "http://h/a", "https://h/a", "http://h/a?b"]),
        st.sampled_from(["one any", "one public", "other any"]),  # scopes
        st.sampled_from([None, "one", "other"]),  # digests of cookies
        st.sampled_from([0, 1, 100]),  # bytes of the body
        st.sampled_from([0, 50, 100]),  # the most that is asked for
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_what_is_found_is_what_was_stored_last_for_the_same_and_no_more_than_is_asked_for(steps):
    async def main(folder):
        cache, kept = PageCache(folder), {}
        await cache.open()
        try:
            for number, (url, scope, cookie, num_bytes, max_bytes) in enumerate(steps):
                headers = {} if cookie is None else {"cookie": cookie}
                lookup = await cache.look_up(url, headers, scope=scope, max_bytes=max_bytes)
                kept_cookie, kept_page = kept.get((url, scope), (None, None))
                is_found = kept_page is not None and kept_cookie == cookie and len(kept_page.body) <= max_bytes
                assert lookup.is_fresh == is_found
                assert lookup.stored in (None, kept_page)  # not fresh, it waits to be confirmed
                assert lookup.stored is not None or not is_found
                assert lookup.stored is None or len(lookup.stored.body) <= max_bytes
                if not is_found:
                    page = Stored(f"text/html; n={number}", bytes(num_bytes))
                    answer = {"content-type": page.content_type, "cache-control": "max-age=600", "vary": "Cookie"}
                    await cache.store(lookup, page, answer)
                    kept[url, scope] = cookie, page
        finally:
            await cache.aclose()

    with TemporaryDirectory() as folder:
        asyncio.run(main(folder))
