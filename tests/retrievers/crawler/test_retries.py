from __future__ import annotations

import math

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.retrievers.crawler import retries
from stream2llm_rag.retrievers.crawler.politeness import Politeness
from stream2llm_rag.retrievers.crawler.retries import MAX_WAIT_S, parse_retry_after, wait_before_retry_s

from .conftest import crawl

H = "http://h"


@pytest.mark.parametrize(
    ("value", "asked_s"),
    [
        ("7", 7), (" 120 ", 120), ("0", 0), ("Thu, 01 Jan 1970 00:01:40 GMT", 90), ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
        (None, 0), ("", 0), ("soon", 0), ("-5", 0), ("1.5", 0), ("٣", 0), ("9" * 400, 999_999_999),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value, asked_s):
    assert parse_retry_after(value, now_s=10.0) == asked_s


@given(st.text())
def test_retry_after_is_read_whatever_it_says(value):
    assert 0 <= parse_retry_after(value, now_s=0.0) < math.inf


@given(st.integers(0, 5), st.floats(0, 100), st.floats(0, 1))
def test_the_wait_doubles_is_spread_and_never_shorter_than_asked(num_retries, asked_s, jitter):
    wait_s = wait_before_retry_s(num_retries, asked_s, jitter)
    assert wait_s >= asked_s
    assert wait_before_retry_s(num_retries + 1, 0.0, jitter) == 2 * wait_before_retry_s(num_retries, 0.0, jitter)
    assert wait_before_retry_s(num_retries, 0.0, 0.0) <= wait_before_retry_s(num_retries, 0.0, jitter) <= 2**num_retries


def known(max_active: int = 4) -> Politeness:
    politeness = Politeness(max_active=max_active, delay_s=0.0)
    politeness.start(H, 0.0)
    politeness.learn(H, 0.0, 0.0)
    politeness.end(H)
    return politeness


def num_slots(politeness: Politeness, now_s: float) -> int:
    taken = 0
    while politeness.wait_s(H, now_s) == 0.0:
        politeness.start(H, now_s)
        taken += 1
    for _ in range(taken):
        politeness.end(H)
    return taken


def test_a_host_that_fails_has_a_pause_and_then_half_its_slots_until_it_recovers():
    politeness = known()
    politeness.overloaded(H, 3.0, now_s=10.0)
    assert politeness.wait_s(H, 11.0) == 2.0
    assert num_slots(politeness, 13.0) == 2
    politeness.overloaded(H, 1.0, now_s=13.0)
    politeness.overloaded(H, 1.0, now_s=13.0)
    assert num_slots(politeness, 20.0) == 1
    for _ in range(3 * 8):
        politeness.answered(H, 0.01)
    assert num_slots(politeness, 20.0) == 4


def test_a_host_that_slows_down_gets_fewer_at_once_and_one_that_is_slow_as_ever_does_not():
    steady, slowing = known(), known()
    for i in range(20):
        steady.answered(H, 1.0)
        slowing.answered(H, 0.2 if i < 5 else 4.0)
    assert num_slots(steady, 1.0) == 4
    assert num_slots(slowing, 1.0) == 1
    for _ in range(20):
        slowing.answered(H, 0.2)
    assert num_slots(slowing, 100.0) == 4


def test_a_host_that_asks_for_more_than_a_crawl_waits_is_shut_for_that_long():
    politeness = known()
    politeness.overloaded(H, MAX_WAIT_S, now_s=0.0)
    assert politeness.shut_s(H, 0.0) == 0.0
    politeness = known()
    politeness.overloaded(H, 3600.0, now_s=0.0)
    assert politeness.shut_s(H, 600.0) == 3000.0
    assert politeness.wait_s(H, 0.0) == 0.0


def failing(site, path: str, *statuses: int, retry_after: str = "0") -> None:
    """Answer with these statuses in turn, and then with a page."""
    site.page(path)
    page, left = site.pages[path], list(statuses)

    async def handler(request: web.Request) -> web.StreamResponse:
        if not left:
            return await page(request)
        if (status := left.pop(0)) == 0:
            request.transport.abort()
        return web.Response(status=status or 500, headers={"Retry-After": retry_after})

    site.pages[path] = handler


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_WAIT_S", 0.01)


# A reset of a connection that was used before is tried again by aiohttp at once.
@pytest.mark.parametrize(("statuses", "num_retries"), [([429], 1), ([503, 500], 2), ([0, 0], 1)])
@pytest.mark.usefixtures("quick")
async def test_a_page_is_asked_for_again_and_comes(site, crawler_on, statuses, num_retries):
    failing(site, "/", *statuses)
    result = await crawl(crawler_on("/"))
    assert result.paths(site) == {"/"}
    assert [event.kind for event in result.events] == ["retry"] * num_retries + ["fetch"]
    assert site.requests.count("/") == len(statuses) + 1


@pytest.mark.usefixtures("quick")
async def test_tries_are_limited_and_other_failures_are_final(site, crawler_on):
    site.page("/", "broken", "gone")
    failing(site, "/broken", *[503] * 9)
    site.answer("/gone", status=410)
    result = await crawl(crawler_on("/"))
    assert result.skipped == {site.url("/broken"): "HTTP 503, at each of 3 tries", site.url("/gone"): "HTTP 410"}
    assert (site.requests.count("/broken"), site.requests.count("/gone")) == (3, 1)


async def test_a_host_that_asks_for_an_hour_is_left_alone(site, crawler_on):
    site.page("/", "busy", *(f"p{i}" for i in range(5)))
    failing(site, "/busy", 429, retry_after="3600")
    result = await crawl(crawler_on("/", concurrency=1))
    assert result.paths(site) == {"/"}
    assert result.skipped.pop(site.url("/busy")) == "HTTP 429, and it asks to wait 3600 s"
    assert len(result.skipped) == 5
    assert all("asked to be left alone for another" in reason for reason in result.skipped.values())
    assert not any(request.startswith("/p") for request in site.requests)
