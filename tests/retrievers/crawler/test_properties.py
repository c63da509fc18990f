"""What holds for every crawl of every web, however its pages, answers and cancellations fall (see .virtual)."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream2llm_rag.documents import Append
from stream2llm_rag.errors import CrawlError, LifecycleError

from .virtual import Request, VirtualCrawler, Web, run

SEEDS = st.integers(0, 10**9)
TICK_S = 1e-3  # what the rounds of the loop may take between a decision and what comes of it
ORDERS = st.sampled_from(["relevance", "breadth"])


async def read(crawler: VirtualCrawler, pause_s: Callable[[], float] = lambda: 0.0) -> list[Append]:
    """All deltas of one crawl, by a reader who pauses after each; also where no page came."""
    deltas = []
    try:
        async for delta in crawler.stream("Where is the sea?"):
            deltas.append(delta)
            await asyncio.sleep(pause_s())
    except CrawlError as error:
        if not str(error).startswith("No page could be read"):
            raise
    return deltas


def documents(deltas: list[Append]) -> list:
    return [document for delta in deltas for document in delta.documents]


@settings(max_examples=150, deadline=None)
@given(SEEDS, ORDERS, st.integers(1, 8))
def test_no_page_is_fetched_twice_however_it_is_spelled(seed, order, concurrency):
    async def main():
        web = Web(seed)
        seeds = [web.spelling(web.entrance) for _ in range(3)]
        async with VirtualCrawler(web, seeds, max_pages=100, max_depth=50, order=order, concurrency=concurrency) as crawler:
            return web, await read(crawler)

    web, deltas = run(main)
    assert {number for number in web.num_fetched.values() if number > 1} == set()
    sources = [document.source for document in documents(deltas)]
    assert len(set(sources)) == len(sources)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0]))
def test_no_host_is_asked_more_often_than_it_may_be_over_all_streams(seed, num_streams, per_host, delay_s):
    async def main():
        web = Web(seed, num_hosts=2)
        manners = {"per_host_concurrency": per_host, "delay_s": delay_s, "concurrency": 8}
        async with VirtualCrawler(web, max_pages=100, timeout_s=300.0, **manners) as crawler:
            await asyncio.gather(*(read(crawler) for _ in range(num_streams)))
        return web

    web = run(main)
    for origin, requests in by_origin(web.requests).items():
        least_s = max(delay_s, web.crawl_delay_s[origin])
        starts_s = sorted(request.started_s for request in requests)
        assert all(later - earlier >= least_s - TICK_S for earlier, later in itertools.pairwise(starts_s))
        assert max(num_at_once(requests, start_s) for start_s in starts_s) <= per_host
        for asked_s, until_s in web.asked_for_rest.get(origin, ()):
            assert not [start_s for start_s in starts_s if asked_s + TICK_S < start_s < until_s - TICK_S]
    for requests in by_origin(web.robots).values():
        assert len(requests) == 1


def by_origin(requests: list[Request]) -> dict[str, list[Request]]:
    grouped = defaultdict(list)
    for request in requests:
        grouped[request.origin].append(request)
    return grouped


def num_at_once(requests: list[Request], moment_s: float) -> int:
    return sum(request.started_s <= moment_s < request.ended_s for request in requests)


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    max_pages=st.integers(1, 30),
    max_depth=st.integers(0, 4),
    max_total_bytes=st.sampled_from([200, 2_000, 10**6]),
    timeout_s=st.sampled_from([0.5, 5.0, 500.0]),
    concurrency=st.integers(1, 6),
    per_host=st.sampled_from([None, 1, 2, 5]),
    is_slow=st.booleans(),
)
def test_the_limits_hold_whatever_happens_when(
    seed, max_pages, max_depth, max_total_bytes, timeout_s, concurrency, per_host, is_slow
):
    dice = random.Random(seed)
    ended_s = []

    async def main():
        web = Web(seed)
        limits = {"max_pages": max_pages, "max_depth": max_depth, "max_total_bytes": max_total_bytes, "timeout_s": timeout_s}
        limits["max_pages_per_host"] = per_host
        async with VirtualCrawler(web, concurrency=concurrency, per_host_concurrency=4, **limits) as crawler:
            started_s = time.monotonic()
            deltas = await read(crawler, lambda: dice.choice([0.0, 1.0, 9.0]) if is_slow else 0.0)
            ended_s.append(max([started_s, *(event.ended_s for delta in deltas for event in delta.events)]) - started_s)
            await steps(1)  # in which the crawler takes note of the end
            assert crawler.is_at_rest()
        return web, deltas

    web, deltas = run(main)
    found = documents(deltas)
    assert len(found) <= max_pages
    assert max(Counter(urlsplit(document.source).netloc for document in found).values(), default=0) <= (per_host or max_pages)
    assert all(document.metadata["depth"] <= max_depth for document in found)
    assert web.max_open <= concurrency
    assert sum(document.metadata["num_bytes"] for document in found) <= max_total_bytes
    assert web.num_bytes <= max_total_bytes + concurrency * 64  # the last piece of each page in flight
    assert ended_s[0] <= timeout_s + TICK_S
    assert all(0 <= delta.num_remaining <= max_pages for delta in deltas)


def test_a_reader_who_never_reads_holds_the_crawl_at_its_buffer():
    async def main():
        web = Web(1, num_pages=300, with_failures=False)
        for resource in web.resources.values():
            resource.links = list(web.resources[web._key(web.entrance)].links) + resource.links
        web.resources[web._key(web.entrance)].links = [resource.url for resource in web.resources.values()]
        async with VirtualCrawler(web, max_pages=300, timeout_s=10**6, concurrency=8) as crawler:
            stream = crawler.stream("Where is the sea?")
            await asyncio.sleep(10**5)
            num_fetched = web.num_fetched.total()
            await stream.aclose()
        return num_fetched

    assert run(main) == 64


class TestCancelling:
    """At any time and any step of the event loop, in any of the ways in which a crawl can be given up."""

    @settings(max_examples=200, deadline=None)
    @given(
        seed=SEEDS,
        way=st.sampled_from(["reader", "stream", "crawler", "block"]),
        moment_s=st.sampled_from([0.0, 0.01, 0.1, 0.7, 1.5]) | st.floats(0, 9),
        num_steps=st.integers(0, 40),
        num_more_steps=st.integers(0, 20),
    )
    @example(0, "reader", 0.0, 0, 0)
    @example(0, "crawler", 0.0, 0, 0)
    def test_leaves_nothing_open(self, seed, way, moment_s, num_steps, num_more_steps):
        async def main():
            web = Web(seed)
            crawler = VirtualCrawler(web, max_pages=30, concurrency=6)
            block = asyncio.create_task(use(crawler))
            await asyncio.sleep(moment_s)
            await steps(num_steps)
            await self.give_up(way, crawler, block, num_more_steps)
            await asyncio.wait([block])
            assert crawler.is_at_rest()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            if way == "stream":
                assert block.exception() is None

        async def use(crawler):
            async with crawler, asyncio.TaskGroup() as readers:
                for _ in range(2):
                    readers.create_task(read_to_the_end(crawler))

        async def read_to_the_end(crawler):
            try:
                await read(crawler)
            except (CrawlError, LifecycleError) as error:  # before its stream began, or after
                if way != "crawler" or "closed" not in str(error):
                    raise

        run(main)

    async def give_up(self, way, crawler, block, num_more_steps):
        match way:
            case "reader":
                block.cancel()
            case "stream":
                streams = list(crawler._streams)
                await asyncio.gather(*(stream.aclose() for stream in streams))
                if streams:  # both of them: they were started in one step
                    assert crawler.is_at_rest()
            case "crawler":
                await crawler.aclose()
            case "block":  # a second time, while the first cancellation is still at work
                block.cancel()
                await steps(num_more_steps)
                block.cancel()

    def test_a_crawl_that_waits_for_what_never_comes_would_be_noticed(self):
        async def main():
            await asyncio.Event().wait()

        with pytest.raises(RuntimeError, match="nothing will ever happen"):
            run(main)


async def steps(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
