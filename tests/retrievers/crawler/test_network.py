"""Proxies, cookies and names without an address."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.cookies import SimpleCookie

import pytest
from aiohttp import web
from yarl import URL

from stream2llm_rag.errors import CrawlError, InvalidInputError
from stream2llm_rag.retrievers.crawler import WebCrawler
from stream2llm_rag.retrievers.crawler.addresses import written_refusal
from stream2llm_rag.retrievers.crawler.connections import _GuardedResolver, _Resolver
from stream2llm_rag.retrievers.crawler.cookies import CookieJar

from .conftest import crawl, read

pytestmark = pytest.mark.usefixtures("warm", "leaves_nothing")


@contextmanager
def one_thread_of(loop):
    """Leave the loop a single thread for blocking calls; other tests run on it, too, and get many again."""
    with ThreadPoolExecutor(1) as one:
        loop.set_default_executor(one)
        try:
            yield
        finally:
            loop.set_default_executor(ThreadPoolExecutor())


@pytest.fixture
def proxied(other_site, crawler_on):
    """A crawler whose proxy is the other site: it answers for everybody, and records what it was asked."""
    other_site.asked = []

    async def handler(request):
        other_site.asked.append((request.raw_path, request.headers.get("Proxy-Authorization")))
        return web.Response(text="<p>from the proxy</p>", content_type="text/html")

    class Everything(dict):
        def get(self, path, default=None):
            return handler

    other_site.pages = Everything()

    def build(*seeds, **settings):
        proxy = {"proxy": other_site.url(""), "allow_private_proxies": [other_site.host], "obey_robots": False}
        return crawler_on(*seeds, **{**proxy, **settings})

    return build


class TestProxy:
    async def test_names_are_left_to_it(self, other_site, proxied):
        [document] = (await crawl(proxied("http://docs.example/a"))).documents
        assert document.text == "from the proxy"
        assert other_site.asked == [("http://docs.example/a", None)]

    async def test_credentials_are_for_it_alone(self, other_site, proxied):
        proxy = other_site.url("").replace("//", "//user:secret@")
        await crawl(proxied("http://docs.example/a", proxy=proxy))
        assert other_site.asked == [("http://docs.example/a", "Basic dXNlcjpzZWNyZXQ=")]

    async def test_robots_txt_comes_through_it(self, other_site, proxied):
        await crawl(proxied("http://docs.example/a", obey_robots=True))
        assert [path for path, _ in other_site.asked] == ["http://docs.example/robots.txt", "http://docs.example/a"]

    async def test_its_own_address_is_checked_against_its_own_list(self, other_site, proxied):
        with pytest.raises(CrawlError, match=r"is a loopback address, and allow_private_proxies does not name"):
            await crawl(proxied("http://docs.example/a", allow_private_proxies=(), allow_private_hosts=[other_site.host]))
        assert other_site.asked == []

    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "169.254.169.254", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "localhost"],
    )
    async def test_it_is_not_asked_for_what_is_private(self, other_site, proxied, host):
        with pytest.raises(CrawlError, match="allow_private_hosts does not name this host"):
            await crawl(proxied(f"http://{host}/", allow_private_hosts=()))
        assert other_site.asked == []

    async def test_nor_by_a_redirect_or_a_link(self, site, other_site, proxied):
        async def handler(request):
            other_site.asked.append(request.raw_path)
            if request.raw_path.endswith("/r"):
                return web.Response(status=302, headers={"Location": "http://10.0.0.1/"})
            return web.Response(
                text='<p>text</p><a href="http://169.254.169.254/">x</a><a href="/r">r</a>', content_type="text/html"
            )

        other_site.pages = type("All", (dict,), {"get": lambda *_: handler})()
        result = await crawl(proxied("http://docs.example/a", scope="any"))
        assert len(result.documents) == 1
        assert set(result.skipped) == {"http://169.254.169.254/", "http://10.0.0.1/"}
        assert sorted(other_site.asked) == ["http://docs.example/a", "http://docs.example/r"]

    async def test_it_may_be_asked_for_a_private_host_that_is_allowed_by_name(self, site, other_site, proxied):
        await crawl(proxied("/", allow_private_hosts=[site.host]))
        assert other_site.asked == [(site.url("/"), None)]
        assert site.requests == []

    async def test_one_that_is_not_there_is_named(self, proxied):
        with pytest.raises(CrawlError, match=r"no connection: .*'127\.0\.0\.1', 1"):
            await crawl(proxied("http://docs.example/", proxy="http://127.0.0.1:1", allow_private_proxies=["127.0.0.1"]))

    @pytest.mark.parametrize(
        "proxy",
        ["", "proxy:3128", "socks5://h:1", "http://", "http://h:1/path", "http://h:1?q", "http://h:1/#f", "http://h:x", 7],
    )
    def test_what_is_no_proxy_is_refused(self, proxy):
        with pytest.raises(InvalidInputError, match="proxy is 'http://host:port'"):
            WebCrawler(["http://h/"], proxy=proxy)

    async def test_one_that_refuses_a_tunnel_is_named_without_its_password(self, crawler_on):
        async def refuse(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = {"proxy": f"http://user:TOPSECRET@127.0.0.1:{port}", "allow_private_proxies": ["127.0.0.1"]}
        async with server:
            with pytest.raises(CrawlError) as caught:
                await crawl(crawler_on("https://docs.example/", obey_robots=False, **settings))
        assert "the proxy answered HTTP 407" in str(caught.value)
        assert "TOPSECRET" not in str(caught.value)

    def test_a_password_is_in_no_message(self):
        with pytest.raises(InvalidInputError) as caught:
            WebCrawler(["http://h/"], proxy="ftp://user:secret@h")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_refused"),
    [
        ("docs.python.org", False),
        ("8.8.8.8", False),
        ("134744072", False),  # 8.8.8.8
        ("example.localhost", True),
        ("printer.local.", True),
        ("metadata.google.internal", True),
        ("intranet", True),
        ("LOCALHOST", True),
        ("0x7f000001", True),
        ("127.1", True),
        ("0", True),
        ("10.1.", True),
        ("::1", True),
        ("64:ff9b::7f00:1", True),
    ],
)
def test_hosts_that_others_resolve_are_judged_as_they_are_written(host, is_refused):
    assert (written_refusal(host) is not None) == is_refused


class TestCookies:
    @pytest.fixture
    def seen(self, site):
        """The cookies that came with each page."""
        site.cookies = {}
        for path in ("/", "/a", "/b"):
            site.page(path, "/a", "/b")
            site.pages[path] = self._recording(site, path, site.pages[path])
        return site.cookies

    def _recording(self, site, path, handler):
        async def record(request):
            site.cookies[path] = dict(request.cookies)
            response = await handler(request)
            if path == "/":
                response.set_cookie("visit", "7", domain="example")
                response.set_cookie("later", "8", secure=True)
                response.set_cookie("there", "9", path="/b")
            return response

        return record

    async def test_none_are_held_unless_asked_for(self, site, seen, crawler_on):
        await crawl(crawler_on("/"))
        assert seen == {"/": {}, "/a": {}, "/b": {}}

    async def test_those_given_go_to_their_host_and_sites_may_add_to_them(self, site, seen, crawler_on):
        given = {site.url("/"): {"session": "a=b"}, "http://127.0.0.2/": {"other": "x"}}
        await crawl(crawler_on("/", cookies=given))
        assert seen == {
            "/": {"session": "a=b"},
            "/a": {"session": "a=b", "visit": "7"},
            "/b": {"session": "a=b", "visit": "7", "there": "9"},
        }

    async def test_those_for_https_are_not_sent_in_clear(self, site, seen, crawler_on):
        await crawl(crawler_on("/", cookies={"https://127.0.0.1/": {"session": "1"}}))
        assert seen["/"] == {}

    async def test_each_stream_has_its_own(self, site, seen, crawler_on):
        async with crawler_on("/", cookies={site.url("/"): {"session": "1"}}) as crawler:
            await read(crawler.stream("why?"))
            await read(crawler.stream("why?"))
        assert seen["/"] == {"session": "1"}

    async def test_a_site_cannot_set_them_for_its_neighbours(self, site, seen, crawler_on, monkeypatch):
        asked = []
        monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", ("127.0.0.1", site.port))])

        async def handler(request):
            asked.append((request.host.partition(":")[0], dict(request.cookies)))
            response = web.Response(text=f"<p>{request.host}</p>", content_type="text/html")
            response.set_cookie("planted", "1", domain="github.io")
            return response

        site.pages["/"] = handler
        hosts = ["a.github.io", "b.github.io"]
        seeds = [site.url("/", host=host) for host in hosts]
        given = {seeds[0]: {"mine": "1"}}
        await crawl(crawler_on(*seeds, allow_private_hosts=hosts, cookies=given, concurrency=1, obey_robots=False))
        assert asked == [("a.github.io", {"mine": "1"}), ("b.github.io", {})]

    async def test_a_site_cannot_set_without_end(self, site, crawler_on):
        site.page("/", *(f"p{i}" for i in range(9)))
        for i in range(9):
            site.pages[f"/p{i}"] = self._setting(range(i * 100, i * 100 + 60), i)
        site.pages["/p8"] = self._recording(site, "/p8", site.pages["/p8"])
        site.cookies = {}
        await crawl(crawler_on("/", cookies={site.url("/"): {"session": "1"}}, concurrency=1, order="breadth"))
        assert 100 < len(site.cookies["/p8"]) <= 180

    def _setting(self, numbers, i):
        async def handler(request):
            response = web.Response(text=f"<p>{i}</p>", content_type="text/html")
            for number in numbers:
                response.set_cookie(f"c{number}", "1")
            return response

        return handler

    @pytest.mark.parametrize("host", ["127.0.0.1", "xn--bcher-kva.example"])
    async def test_what_comes_in_clear_does_not_touch_those_for_https(self, host):
        """Neither in their place, nor in front of them by a longer path, nor by the names that promise https."""
        secure, clear = f"https://{host}/a/b", f"http://{host}/"
        jar = CookieJar({secure: {"session": "mine"}, clear: {"plain": "mine"}})

        class Response:
            def __init__(self, url, header):
                self.url, self.cookies = URL(url), SimpleCookie(header)

        refused = ["session=x", "session=x; Path=/a/b", "new=x; Secure", "__Host-id=x", "__secure-id=x"]
        for header in [*refused, "plain=theirs", "other=1"]:
            jar.learn(Response(clear, header))
        assert set(jar.header_for(secure).split("; ")) == {"session=mine", "plain=theirs", "other=1"}
        jar.learn(Response(secure, "__Secure-id=x"))
        assert "__Secure-id" not in (jar.header_for(clear) or "")
        jar.learn(Response(secure, "session=renewed; Secure; Path=/"))
        assert "session=renewed" in jar.header_for(secure)

    @pytest.mark.parametrize(
        ("cookies", "message"),
        [
            ("a=b", "maps the URL"),
            ({"http://h/": "a=b"}, "maps the URL"),
            ({"h": {"a": "b"}}, "scheme"),
            ({"http://h/": {"a b": "c"}}, "no name of a cookie"),
            ({"http://h/": {"a": "se;cret"}}, "a value that no cookie can have"),
            ({"http://h/": {"a": "se\r\ncret"}}, "a value that no cookie can have"),
            ({"http://h/": {"a": 7}}, "a value that no cookie can have"),
        ],
    )
    def test_what_is_no_cookie_is_refused_without_telling_it(self, cookies, message):
        with pytest.raises(InvalidInputError, match=message) as caught:
            WebCrawler(["http://h/"], cookies=cookies)
        assert "cret" not in str(caught.value)


class TestNames:
    async def test_those_whose_servers_are_silent_take_no_thread_of_others(self, site, crawler_on, monkeypatch):
        site.page("/", "http://silent.example/")
        loop, is_asked, is_over = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def silent(host, *_, **__):
            loop.call_soon_threadsafe(is_asked.set)
            is_over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")

        monkeypatch.setattr("socket.getaddrinfo", silent)
        with one_thread_of(loop):
            async with crawler_on("/", scope="any", obey_robots=False) as crawler:
                reading = asyncio.create_task(read(crawler.stream("why?")))
                await is_asked.wait()
                try:
                    assert await asyncio.wait_for(asyncio.to_thread(str, "mine"), 30) == "mine"
                finally:
                    is_over.set()
                result = await reading
        assert "no answer" in result.skipped["http://silent.example/"]

    async def test_a_name_without_an_address_costs_its_page_and_not_the_crawl(self, site, crawler_on, monkeypatch):
        site.page("/", "http://nowhere.example/")
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [])
        result = await crawl(crawler_on("/", scope="any", obey_robots=False))
        assert len(result.documents) == 1
        assert result.skipped["http://nowhere.example/"].startswith("no connection: ")
        assert "the name has no address" in result.skipped["http://nowhere.example/"]

    async def test_one_with_several_private_addresses_is_refused_for_its_address(
        self, site, other_site, crawler_on, monkeypatch
    ):
        site.page("/", other_site.url("/", host="inside.example"))
        inside = [(2, 1, 6, "", ("127.0.0.1", other_site.port)), (2, 1, 6, "", ("10.0.0.1", other_site.port))]
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: inside)
        result = await crawl(crawler_on("/", scope="any", obey_robots=False))
        [skipped] = [event for event in result.events if event.kind == "skip"]
        assert skipped.category == "address"
        assert "127.0.0.1 is a loopback address, and allow_private_hosts does not name this host" in skipped.detail
        assert other_site.connections == set()

    async def test_of_one_with_public_and_private_addresses_only_the_public_ones_are_tried(self, crawler_on, monkeypatch):
        found = [(2, 1, 6, "", (address, 80)) for address in ("127.0.0.1", "203.0.114.1", "10.0.0.1", "203.0.114.2")]
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
        resolver = _GuardedResolver(_Resolver(), "allow_private_hosts")
        assert [each["host"] for each in await resolver.resolve("mixed.example", 80)] == ["203.0.114.1", "203.0.114.2"]

    async def test_other_answers_pass(self):
        resolver = _Resolver()
        [found] = await resolver.resolve("127.0.0.1", 80)
        assert found["host"] == "127.0.0.1"
        await resolver.close()
