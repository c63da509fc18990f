from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections import Counter

import pytest
from aiohttp import web

from stream2llm_rag.errors import CrawlError, InvalidInputError
from stream2llm_rag.retrievers import StreamingRetriever
from stream2llm_rag.retrievers.crawler import WebCrawler, fetch, politeness
from stream2llm_rag.retrievers.crawler.robots import rules_from_answer
from stream2llm_rag.retrievers.crawler.visit import Visitor

from .conftest import crawl, read

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_a_site_is_read_whole_and_each_page_once(site, crawler_on):
    site.page("/", "a", "b#part", "a?utm_source=x", "/../a", "http://127.0.0.1:1/off", "mailto:x@y")
    site.page("/a", "/", "b")
    site.page("/b", "a/c")
    site.page("/a/c")
    result = await crawl(crawler_on("/"))
    assert result.paths(site) == {"/", "/a", "/b", "/a/c"}
    assert sorted(site.requests) == ["/", "/a", "/a/c", "/b", "/robots.txt"]


async def test_a_page_becomes_a_document_and_an_event(site, crawler_on):
    site.page("/", "a")
    site.page("/a")
    result = await crawl(crawler_on("/"))
    document = result.documents[-1]
    assert document.source == site.url("/a")
    assert document.title == "Title of /a"
    assert "Text of /a." in document.text
    assert document.metadata["content_type"] == "text/html"
    assert document.metadata["depth"] == 1
    assert document.metadata["num_bytes"] > 80
    event = result.events[-1]
    assert (event.kind, event.source, event.title) == ("fetch", document.source, document.title)
    assert event.started_s < event.ended_s


async def test_a_document_keeps_what_its_page_says_of_itself(site, crawler_on):
    site.page("/", "a", head='<link rel="canonical" href="/home"><meta name="date" content="2023-05-04">')
    site.page("/a", head='<link rel="canonical" href="http://example.com/">')
    home, other = (await crawl(crawler_on("/"))).documents
    assert (home.source, home.metadata["canonical_url"], home.metadata["date"]) == (
        site.url("/home"),
        site.url("/home"),
        "2023-05-04",
    )
    assert (other.source, other.metadata["canonical_url"]) == (site.url("/a"), "http://example.com/")
    assert "date" not in other.metadata


async def test_an_event_holds_the_steps_that_led_to_it(site, crawler_on):
    site.answer("/robots.txt", "User-agent: *\nCrawl-delay: 0.5", content_type="text/plain")
    site.redirect("/", "/a")
    site.page("/a")
    [event] = (await crawl(crawler_on("/"))).events
    assert [(step.kind, step.source, step.detail) for step in event.steps] == [
        ("robots", site.url("/robots.txt"), "asks for 0.5 s between requests"),
        ("redirect", site.url("/"), f"to {site.url('/a')}"),
        ("download", site.url("/a"), event.steps[2].detail),
        ("extract", site.url("/a"), None),
    ]
    assert event.steps[2].detail.endswith(" bytes")
    ends_s = [step.ended_s for step in event.steps]
    assert ends_s == sorted(ends_s)
    assert all(step.started_s <= step.ended_s <= event.ended_s for step in event.steps)


async def test_a_quick_extractor_can_be_had_by_name(site, crawler_on):
    site.answer("/", "<body><nav>Home</nav><main><p>The text.</p></main></body>")
    assert [document.text for document in (await crawl(crawler_on("/", extractor="fast"))).documents] == ["The text."]


async def test_pages_come_in_the_order_in_which_they_finish(site, crawler_on):
    site.page("/", "slow", "quick")
    site.page("/slow", gated=True)
    site.page("/quick")
    async with crawler_on("/") as crawler:
        stream = crawler.stream("why?")
        first, second = await anext(stream), await anext(stream)
        assert [first.documents[0].source, second.documents[0].source] == [site.url("/"), site.url("/quick")]
        site.gate.set()
        assert (await anext(stream)).documents[0].source == site.url("/slow")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_links_are_followed_before_the_text_of_their_page_is_there(site, crawler_on):
    site.page("/hang", "next")
    site.page("/next")
    async with crawler_on("/hang") as crawler:
        stream = crawler.stream("why?")
        await site.until(lambda: "/next" in site.requests)
        await stream.aclose()


async def test_the_estimate_counts_down_to_zero(site, crawler_on):
    site.page("/", "a", "b", "gone")
    site.page("/a")
    site.page("/b")
    result = await crawl(crawler_on("/"))
    estimates = [delta.num_remaining for delta in result.deltas]
    assert estimates == [3, 2, 1, 0]


async def test_no_more_pages_are_fetched_than_are_wanted(site, crawler_on):
    site.page("/", *(f"p{i}" for i in range(50)))
    for i in range(50):
        site.page(f"/p{i}")
    result = await crawl(crawler_on("/", max_pages=5, obey_robots=False))
    assert len(result.documents) == len(site.requests) == 5
    assert all(0 <= delta.num_remaining <= 5 for delta in result.deltas)


async def test_pages_that_fail_make_room_for_others(site, crawler_on):
    site.page("/", "x", "y", "a", "b")
    site.page("/a")
    site.page("/b")
    result = await crawl(crawler_on("/", max_pages=3))
    assert result.paths(site) == {"/", "/a", "/b"}
    assert result.skipped == {site.url("/x"): "HTTP 404", site.url("/y"): "HTTP 404"}


async def test_links_are_followed_to_the_depth_and_no_deeper(site, crawler_on):
    for i in range(5):
        site.page("/" if i == 0 else f"/{i}", f"{i + 1}")
    assert (await crawl(crawler_on("/", max_depth=2))).paths(site) == {"/", "/1", "/2"}


async def test_prefix_allow_and_deny_bound_the_crawl(site, crawler_on):
    site.page("/docs/", "a.html", "b.html", "c.txt", "/other.html")
    for path in ("/docs/a.html", "/docs/b.html", "/docs/c.txt", "/other.html"):
        site.page(path)
    result = await crawl(crawler_on("/docs/", scope="prefix", allow=[r"\.html$"], deny=["b"]))
    assert result.paths(site) == {"/docs/", "/docs/a.html"}


async def test_no_more_requests_at_once_than_a_host_may_get_over_all_streams(site, crawler_on):
    site.page("/", *(f"p{i}" for i in range(8)))
    for i in range(8):
        site.page(f"/p{i}", gated=True)
    async with crawler_on("/", per_host_concurrency=2, concurrency=8) as crawler:
        readers = [asyncio.create_task(read(crawler.stream("why?"))) for _ in range(3)]
        await site.until(lambda: site.num_active == 2)
        site.gate.set()
        results = await asyncio.gather(*readers)
    assert site.max_active == 2
    assert [len(result.documents) for result in results] == [9, 9, 9]
    assert site.requests.count("/robots.txt") == 1


async def test_no_more_pages_are_in_flight_than_a_stream_may_have(site, crawler_on):
    seeds = [f"/p{i}" for i in range(6)]
    for seed in seeds:
        site.page(seed, gated=True)
    async with crawler_on(*seeds, concurrency=2, per_host_concurrency=8) as crawler:
        stream = crawler.stream("why?")
        await site.until(lambda: site.num_active == 2)
        site.gate.set()
        assert len((await read(stream)).documents) == 6
    assert site.max_active == 2


async def test_further_pages_start_as_soon_as_robots_txt_is_known(site, crawler_on):
    site.page("/a", gated=True)
    site.page("/b", gated=True)
    async with crawler_on("/a", "/b") as crawler:
        stream = crawler.stream("why?")
        await site.until(lambda: site.num_active == 2)
        await stream.aclose()


async def test_streams_share_a_busy_host_fairly(site, crawler_on, monkeypatch):
    monkeypatch.setattr(politeness, "_QUICK_S", 60.0)  # to a host that is slow all keep a distance
    paths = [f"/p{i}" for i in range(12)]
    for path in paths:
        site.page(path)
    starts, enough, begin, extract = [], asyncio.Event(), Visitor.begin, Visitor.extract

    def noting(visitor, target):
        starts.append(id(visitor))
        if len(starts) == 21:
            enough.set()
        return begin(visitor, target)

    async def late(visitor, *args):  # its end, too, lets a stream look for a page, whenever it comes
        await enough.wait()
        return await extract(visitor, *args)

    monkeypatch.setattr(Visitor, "begin", noting)
    monkeypatch.setattr(Visitor, "extract", late)
    async with crawler_on(*paths, per_host_concurrency=1) as crawler:
        results = await asyncio.gather(*(read(crawler.stream("why?")) for _ in range(3)))
    assert [len(result.documents) for result in results] == [12] * 3
    assert sorted(Counter(starts[:21]).values()) == [7, 7, 7]  # unshared, one takes 8, all that it may, before another has any


async def test_starts_keep_the_delay_that_robots_txt_asks_for(site, crawler_on):
    site.answer("/robots.txt", "User-agent: *\nCrawl-delay: 0.2", content_type="text/plain")
    site.page("/", "a")
    site.page("/a")
    result = await crawl(crawler_on("/"))
    starts_s = sorted(event.started_s for event in result.events)
    assert starts_s[1] - starts_s[0] >= 0.2


async def test_connections_are_used_again(site, crawler_on):
    site.page("/", "a", "b")
    site.page("/a")
    site.page("/b")
    await crawl(crawler_on("/", per_host_concurrency=1))
    assert len(site.requests) == 4
    assert len(site.connections) == 1


async def test_the_requests_say_who_asks(site, crawler_on):
    agents = set()

    async def handler(request):
        agents.add(request.headers["User-Agent"])
        return web.Response(text="hello", content_type="text/plain")

    site.pages["/"] = site.pages["/robots.txt"] = handler
    await crawl(crawler_on("/", user_agent="my-bot/2.0"))
    assert agents == {"my-bot/2.0"}


class TestRobots:
    async def test_disallowed_pages_are_skipped_and_named(self, site, crawler_on):
        site.answer("/robots.txt", "User-agent: *\nDisallow: /private", content_type="text/plain")
        site.page("/", "private", "open")
        site.page("/private")
        site.page("/open")
        result = await crawl(crawler_on("/"))
        assert result.paths(site) == {"/", "/open"}
        assert result.skipped == {site.url("/private"): "robots.txt disallows it"}
        assert "/private" not in site.requests

    async def test_rules_about_a_query_hold_in_whatever_order_its_parameters_are(self, site, crawler_on):
        site.answer("/robots.txt", "User-agent: *\nDisallow: /find?s=\nDisallow: /go?to=/in/", content_type="text/plain")
        site.page("/", "/find?s=sea&c=1", "/go?to=/in/side", "/find?c=1&b=sea")
        site.page("/find?c=1&b=sea")
        result = await crawl(crawler_on("/"))
        assert set(result.skipped.values()) == {"robots.txt disallows it"}
        assert sorted(site.requests) == ["/", "/find?c=1&b=sea", "/robots.txt"]

    async def test_a_redirect_meets_robots_txt_too(self, site, crawler_on):
        site.answer("/robots.txt", "User-agent: *\nDisallow: /private", content_type="text/plain")
        site.redirect("/", "/private")
        with pytest.raises(CrawlError, match="disallows"):
            await crawl(crawler_on("/"))
        assert "/private" not in site.requests

    async def test_a_server_error_disallows_all(self, site, crawler_on):
        site.answer("/robots.txt", status=503)
        site.page("/")
        with pytest.raises(CrawlError, match=r"robots.txt could not be read \(HTTP 503\)"):
            await crawl(crawler_on("/"))
        assert site.requests == ["/robots.txt"]

    async def test_it_is_found_behind_redirects(self, site, crawler_on):
        site.redirect("/robots.txt", "/r1")
        site.redirect("/r1", "/r2", status=301)
        site.answer("/r2", "User-agent: *\nDisallow: /", content_type="text/plain")
        site.page("/")
        with pytest.raises(CrawlError, match="disallows"):
            await crawl(crawler_on("/"))

    async def test_redirects_without_end_count_as_none(self, site, crawler_on):
        site.redirect("/robots.txt", "/robots.txt")
        site.page("/")
        assert len((await crawl(crawler_on("/"))).documents) == 1
        assert site.requests.count("/robots.txt") == 6

    async def test_a_long_one_is_not_parsed_on_the_event_loop(self, site, crawler_on, monkeypatch):
        parsed_by = []

        def parse(*answer):
            parsed_by.append(threading.current_thread())
            return rules_from_answer(*answer)

        monkeypatch.setattr(fetch, "rules_from_answer", parse)
        rules = "".join(f"Disallow: /private{i}*x*y\n" for i in range(10_000))
        site.answer("/robots.txt", f"User-agent: *\n{rules}", content_type="text/plain")
        site.page("/", "private7/x/y", "open")
        site.page("/open")
        result = await crawl(crawler_on("/"))
        assert result.paths(site) == {"/", "/open"}
        assert len(parsed_by) == 1
        assert parsed_by[0] is not threading.current_thread()

    async def test_it_can_be_left_aside(self, site, crawler_on):
        site.answer("/robots.txt", "User-agent: *\nDisallow: /", content_type="text/plain")
        site.page("/")
        assert len((await crawl(crawler_on("/", obey_robots=False))).documents) == 1
        assert site.requests == ["/"]


class TestRedirects:
    async def test_the_source_is_where_they_end(self, site, crawler_on):
        for i in range(5):
            site.redirect(f"/r{i}" if i else "/", f"/r{i + 1}", status=(301, 302, 303, 307, 308)[i])
        site.page("/r5")
        result = await crawl(crawler_on("/"))
        assert result.sources == [site.url("/r5")]
        assert result.skipped == {}

    async def test_more_than_five_are_too_many(self, site, crawler_on):
        for i in range(6):
            site.redirect(f"/r{i}" if i else "/", f"/r{i + 1}")
        site.page("/r6")
        with pytest.raises(CrawlError, match="more than 5 redirects"):
            await crawl(crawler_on("/"))
        assert "/r6" not in site.requests

    async def test_a_loop_ends(self, site, crawler_on):
        site.redirect("/", "/b")
        site.redirect("/b", "/")
        with pytest.raises(CrawlError, match="met before"):
            await crawl(crawler_on("/", obey_robots=False))
        assert site.requests == ["/", "/b"]

    @pytest.mark.parametrize("location", ["", "ftp://h/x", "http://user:pw@h/", "http://[bad/", "javascript:alert(1)"])
    async def test_to_nowhere(self, site, crawler_on, location):
        site.redirect("/", location)
        with pytest.raises(CrawlError, match="cannot be fetched"):
            await crawl(crawler_on("/"))

    async def test_out_of_scope(self, site, other_site, crawler_on):
        site.redirect("/", other_site.url("/"))
        other_site.page("/")
        with pytest.raises(CrawlError, match="outside the scope"):
            await crawl(crawler_on("/", allow_private_hosts=["127.0.0.1"]))
        assert other_site.requests == []

    async def test_two_redirects_to_one_page_give_it_once(self, site, crawler_on):
        site.page("/", "r1", "r2")
        site.redirect("/r1", "/end")
        site.redirect("/r2", "/end")
        site.page("/end")
        result = await crawl(crawler_on("/"))
        assert sorted(result.paths(site)) == ["/", "/end"]
        assert list(result.skipped.values()) == [f"it redirects to {site.url('/end')}, which the crawl met before"]


class TestDuplicates:
    async def test_pages_with_one_canonical_address_come_once_under_it(self, site, crawler_on):
        head = '<link rel="canonical" href="/real">'
        site.page("/", "p1", "p2", "real")
        site.page("/p1", head=head, text="one")
        site.page("/p2", head=head, text="two")
        site.page("/real", head=head, text="three")
        result = await crawl(crawler_on("/", per_host_concurrency=1))
        assert sorted(result.sources) == [site.url("/"), site.url("/real")]
        assert set(result.skipped.values()) <= {f"it is another address of {site.url('/real')}"}

    async def test_one_page_is_asked_for_once_however_its_parameters_are_ordered(self, site, crawler_on):
        site.page("/", "/p?a=1&b=/x", "/p?b=%2Fx&a=1", "/p?utm_source=y&b=/x&a=1")
        site.page("/p?a=1&b=/x")
        assert (await crawl(crawler_on("/"))).sources == [site.url("/"), site.url("/p?a=1&b=/x")]
        assert sorted(site.requests) == ["/", "/p?a=1&b=/x", "/robots.txt"]

    async def test_pages_that_claim_each_other_are_not_both_lost(self, site, crawler_on):
        site.page("/", "a", "b")
        site.page("/a", head='<link rel="canonical" href="/b">')
        site.page("/b", head='<link rel="canonical" href="/a">')
        assert len((await crawl(crawler_on("/"))).documents) == 2

    async def test_a_page_cannot_claim_an_address_on_another_host(self, site, crawler_on):
        site.page("/", head='<link rel="canonical" href="http://example.com/">')
        assert (await crawl(crawler_on("/", scope="any"))).sources == [site.url("/")]

    async def test_the_same_text_comes_once(self, site, crawler_on):
        site.page("/", "a", "b")
        site.page("/a", text="twin")
        site.page("/b", text="twin")
        result = await crawl(crawler_on("/"))
        assert len(result.documents) == 2
        assert "same text as" in "".join(result.skipped.values())

    async def test_seeds_that_are_one_url_are_one_seed(self, site, crawler_on):
        site.page("/")
        result = await crawl(crawler_on("/", "/#top", "/./"))
        assert len(result.deltas) == 1


class TestContent:
    @pytest.mark.parametrize("content_type", ["image/png", "application/zip", "application/octet-stream", ""])
    async def test_what_is_not_text_is_refused(self, site, crawler_on, content_type):
        site.answer("/", b"\x89PNG" * 100, content_type=content_type)
        with pytest.raises(CrawlError, match="not text"):
            await crawl(crawler_on("/"))

    @pytest.mark.parametrize("content_type", ["text/plain; charset=utf-16-le", "TEXT/Markdown;charset=UTF-16LE"])
    async def test_text_is_taken_as_it_is(self, site, crawler_on, content_type):
        site.answer("/", "Grüße & <b>\n".encode("utf-16-le"), content_type=content_type)
        assert [document.text for document in (await crawl(crawler_on("/"))).documents] == ["Grüße & <b>"]

    async def test_compressed_pages_are_read(self, site, crawler_on):
        site.answer("/", gzip.compress(b"<p>small</p>"), headers={"Content-Encoding": "gzip"})
        assert (await crawl(crawler_on("/"))).documents[0].text == "small"

    async def test_a_page_without_text_is_skipped(self, site, crawler_on):
        site.page("/", "empty")
        site.answer("/empty", "<html><body> </body></html>")
        assert (await crawl(crawler_on("/"))).skipped == {site.url("/empty"): "it has no text"}

    @pytest.mark.parametrize("status", [204, 304, 401, 404, 501])
    async def test_a_status_that_brings_no_page_is_named(self, site, crawler_on, status):
        site.page("/", "bad")
        site.answer("/bad", status=status, content_type="text/html")
        result = await crawl(crawler_on("/"))
        assert result.skipped == {site.url("/bad"): "it has no text" if status == 204 else f"HTTP {status}"}

    async def test_a_host_that_no_resolver_takes_is_named(self, site, crawler_on):
        host = "http://" + "a" * 64 + ".example/"
        site.page("/", host)
        assert "no valid answer" in (await crawl(crawler_on("/", scope="any"))).skipped[host]

    async def test_an_answer_that_is_no_http_is_named(self, site, crawler_on):
        async def handler(request):
            request.transport.write(b"garbage\r\n\r\n")
            request.transport.close()
            return await asyncio.Future()

        site.page("/", "bad")
        site.pages["/bad"] = handler
        assert "no valid answer" in (await crawl(crawler_on("/"))).skipped[site.url("/bad")]


class TestLimits:
    async def test_a_body_that_says_it_is_too_large_is_not_waited_for(self, site, crawler_on):
        async def announce(request):
            response = web.StreamResponse(headers={"Content-Type": "text/html", "Content-Length": "2000"})
            await response.prepare(request)
            await site.gate.wait()

        site.pages["/"] = announce
        with pytest.raises(CrawlError, match="larger than 1000 bytes"):
            await crawl(crawler_on("/", max_page_bytes=1_000))

    async def test_a_body_without_end_is_cut_off(self, site, crawler_on):
        site.pages["/"] = endless
        with pytest.raises(CrawlError, match="larger than 100000 bytes"):
            await crawl(crawler_on("/", max_page_bytes=100_000))
        await site.until_idle()

    async def test_a_small_body_that_unpacks_to_a_large_one_is_cut_off(self, site, crawler_on):
        bomb = gzip.compress(b"x" * 20_000_000)
        assert len(bomb) < 100_000
        site.answer("/", bomb, headers={"Content-Encoding": "gzip"})
        with pytest.raises(CrawlError, match="larger than 100000 bytes"):
            await crawl(crawler_on("/", max_page_bytes=100_000))

    async def test_the_bytes_of_a_crawl_are_limited(self, site, crawler_on):
        site.page("/", *(f"p{i}" for i in range(9)))
        for i in range(9):
            site.page(f"/p{i}", text=f"{i}" * 10_000)
        result = await crawl(crawler_on("/", max_total_bytes=25_000, per_host_concurrency=1, concurrency=1))
        assert len(result.documents) == 3
        assert list(result.skipped.values()) == ["the crawl's byte limit is reached"]

    async def test_a_page_that_does_not_come_is_given_up(self, site, crawler_on):
        site.page("/", "slow")
        site.page("/slow", gated=True)
        result = await crawl(crawler_on("/", page_timeout_s=0.5))
        assert result.skipped == {site.url("/slow"): "no complete answer within 0.5 s"}
        await site.until_idle()

    async def test_a_crawl_that_takes_too_long_ends_with_what_it_has(self, site, crawler_on):
        site.page("/", "slow")
        site.page("/slow", gated=True)
        result = await crawl(crawler_on("/", timeout_s=6.0))
        assert result.sources == [site.url("/")]
        assert result.skipped == {site.url("/slow"): "the crawl's time limit of 6 s came first"}
        assert result.deltas[-1].num_remaining == 0

    async def test_a_reader_that_does_not_read_stops_the_crawl(self, site, crawler_on):
        site.page("/", *(f"p{i}" for i in range(200)))
        async with crawler_on("/", max_pages=200, obey_robots=False) as crawler:
            stream = crawler.stream("why?")
            while len(stream._crawl.outcomes) < 64:
                stream._crawl.arrived.clear()
                await stream._crawl.arrived.wait()
            for _ in range(10):
                await asyncio.sleep(0)  # time enough to start one more
            assert len(site.requests) == 64
            assert len((await read(stream)).deltas) == 201


class TestAddresses:
    async def test_a_private_seed_is_refused(self, site, crawler_on):
        site.page("/")
        with pytest.raises(CrawlError, match=r"127\.0\.0\.1 is a loopback address"):
            await crawl(crawler_on("/", allow_private_hosts=[]))
        assert site.requests == []

    @pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
    async def test_a_private_address_in_disguise_is_refused(self, site, crawler_on, host):
        with pytest.raises(CrawlError, match=r"is a loopback address|not a canonical IPv4 address"):
            await crawl(crawler_on(site.url("/", host=host), obey_robots=False))
        assert site.requests == []

    async def test_a_redirect_to_another_port_of_an_allowed_host_is_refused(self, site, other_site, crawler_on):
        site.redirect("/", other_site.url("/"))
        other_site.page("/")
        with pytest.raises(CrawlError, match="is a loopback address"):
            await crawl(crawler_on("/", scope="any"))
        assert other_site.requests == []

    async def test_a_link_to_a_private_address_is_refused(self, site, crawler_on):
        site.page("/", site.url("/secret", host="localhost"))
        result = await crawl(crawler_on("/", scope="any"))
        assert "is a loopback address" in result.skipped[site.url("/secret", host="localhost")]
        assert "/secret" not in site.requests

    async def test_a_public_name_that_leads_inside_is_refused(self, site, crawler_on, monkeypatch):
        answers = resolve_to("127.0.0.1", site.port)
        monkeypatch.setattr("socket.getaddrinfo", answers)
        with pytest.raises(CrawlError, match="is a loopback address"):
            await crawl(crawler_on(site.url("/", host="rebound.example"), obey_robots=False))
        assert site.requests == []

    async def test_a_host_that_is_allowed_by_name_is_reached_by_that_name(self, site, crawler_on, monkeypatch):
        monkeypatch.setattr("socket.getaddrinfo", resolve_to("127.0.0.1", site.port))
        site.page("/")
        seed = site.url("/", host="docs.internal")
        assert (await crawl(crawler_on(seed, allow_private_hosts=["docs.internal"]))).sources == [seed]

    async def test_robots_txt_cannot_lead_inside(self, site, other_site, crawler_on):
        site.redirect("/robots.txt", other_site.url("/robots.txt"))
        with pytest.raises(CrawlError, match=r"robots.txt could not be read .*loopback"):
            await crawl(crawler_on("/"))
        assert other_site.requests == []

    async def test_no_proxy_is_taken_from_the_environment(self, site, other_site, crawler_on, monkeypatch):
        monkeypatch.setenv("http_proxy", other_site.url(""))
        site.page("/")
        assert len((await crawl(crawler_on("/"))).documents) == 1
        assert other_site.requests == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("seeds", "settings", "message"),
        [
            ([], {}, "at least one seed"),
            ("http://h/", {}, r"\['http://h/'\]"),
            (["h"], {}, "scheme"),
            (["http://"], {}, "no host"),
            (["http://h/"], {"max_pages": 0}, "max_pages"),
            (["http://h/"], {"timeout_s": float("nan")}, "timeout_s"),
            (["http://h/"], {"max_depth": -1}, "max_depth"),
            (["http://h/"], {"delay_s": -0.1}, "delay_s"),
            (["http://h/"], {"user_agent": "a\r\nX: y"}, "one line"),
            (["http://h/"], {"extractor": "extract"}, "module:function"),
            (["http://h/"], {"extractor": None}, "module:function"),
            (["http://h/"], {"max_pages": 2.5}, "max_pages is a whole number"),
            (["http://h/"], {"max_pages": True}, "max_pages is a whole number"),
            (["http://h/"], {"concurrency": "8"}, "concurrency is a whole number"),
            (["http://h/"], {"timeout_s": "60"}, "timeout_s is a time"),
            (["http://h/"], {"max_similarity": 1.5}, "max_similarity lies between"),
            (["http://h/"], {"min_relevance": "0.1"}, "min_relevance lies between"),
            (["http://h/"], {"allow": ["["]}, "regular expression"),
            (["http://h/"], {"allow_private_hosts": "localhost"}, "collection"),
        ],
    )
    def test_settings_that_mean_nothing_are_refused(self, seeds, settings, message):
        with pytest.raises(InvalidInputError, match=message):
            WebCrawler(seeds, **settings)

    async def test_an_empty_question_is_refused_and_the_crawler_lives(self, site, crawler_on):
        site.page("/")
        async with crawler_on("/") as crawler:
            with pytest.raises(InvalidInputError, match="question"):
                crawler.stream(" ")
            assert len((await read(crawler.stream("why?"))).documents) == 1

    async def test_every_seed_that_fails_is_named_with_its_reason(self, site, crawler_on):
        site.redirect("/r", "/missing")
        site.answer("/pdf", content_type="application/zip")
        async with crawler_on("/r", "/pdf", "/gone") as crawler:
            stream = crawler.stream("why?")
            skipped = [(await anext(stream)).events[0].source for _ in range(3)]
            with pytest.raises(CrawlError) as caught:
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert sorted(skipped) == [site.url("/gone"), site.url("/missing"), site.url("/pdf")]
        for seed, reason in (("/r", "HTTP 404"), ("/pdf", "application/zip"), ("/gone", "HTTP 404")):
            assert f"{site.url(seed)}: " in str(caught.value)
            assert reason in str(caught.value)

    def test_it_is_a_streaming_retriever(self):
        assert isinstance(WebCrawler(["http://h/"]), StreamingRetriever)


async def endless(request):
    response = web.StreamResponse(headers={"Content-Type": "text/html"})
    await response.prepare(request)
    while True:
        await response.write(b"<p>more</p>" * 1_000)


def resolve_to(address, port):
    def answer(host, *_args, **_kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    return answer
