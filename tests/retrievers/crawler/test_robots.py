from __future__ import annotations

import anyio
import pytest

from stream2llm_rag.retrievers.crawler import robots_cache
from stream2llm_rag.retrievers.crawler.robots import MAX_CRAWL_DELAY_S, MAX_ROBOTS_BYTES, RobotsRules, rules_from_answer
from stream2llm_rag.retrievers.crawler.robots_cache import RobotsCache

AGENT = "stream2llm-rag/1.0"


def refusal(body: str, path: str) -> str | None:
    return rules_from_answer(200, body.encode(), AGENT).refusal(f"http://h{path}")


def test_the_longest_rule_wins():
    body = "User-agent: *\nDisallow: /a\nAllow: /a/open\n"
    assert "disallows" in refusal(body, "/a/closed")
    assert refusal(body, "/a/open/x") is None
    assert refusal(body, "/b") is None


def test_our_own_group_goes_before_the_one_for_all():
    body = "User-agent: *\nDisallow: /\n\nUser-agent: stream2llm-rag\nDisallow: /private\n"
    assert refusal(body, "/x") is None
    assert refusal(body, "/private/x") is not None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_an_unavailable_robots_txt_allows_all(status):
    assert rules_from_answer(status, b"User-agent: *\nDisallow: /", AGENT).refusal("http://h/x") is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_unreachable_robots_txt_disallows_all_and_says_why(status):
    assert f"HTTP {status}" in rules_from_answer(status, b"", AGENT).refusal("http://h/x")


@pytest.mark.parametrize(("asked", "kept_s"), [("2.5", 2.5), ("3600", MAX_CRAWL_DELAY_S), ("-1", 0.0), ("soon", 0.0)])
def test_the_crawl_delay_is_kept_up_to_a_cap(asked, kept_s):
    assert rules_from_answer(200, f"User-agent: *\nCrawl-delay: {asked}".encode(), AGENT).crawl_delay_s == kept_s


def test_a_rule_cut_by_the_size_limit_is_not_applied():
    filler = b"User-agent: *\n" + b"#" * (MAX_ROBOTS_BYTES - 14 - len("\nDisallow: /a")) + b"\nDisallow: /a"
    assert len(filler) == MAX_ROBOTS_BYTES
    assert rules_from_answer(200, filler + b"bc\n", AGENT).refusal("http://h/a1") is None


@pytest.mark.parametrize("body", [b"\xff\xfe\x00garbage", b"", b"\xef\xbb\xbfUser-agent: *\nDisallow: /x"])
def test_any_bytes_are_read(body):
    assert rules_from_answer(200, body, AGENT).refusal("http://h/y") is None


class Fetches:
    def __init__(self, unreachable: str | None = None) -> None:
        self.unreachable = unreachable
        self.origins: list[str] = []

    async def __call__(self, origin: str) -> RobotsRules:
        self.origins.append(origin)
        return RobotsRules(AGENT, unreachable=self.unreachable)


@pytest.mark.parametrize(("unreachable", "kept_s"), [(None, 24 * 3600), ("HTTP 500", 60)])
async def test_rules_are_kept_for_a_time_that_depends_on_whether_they_could_be_read(unreachable, kept_s):
    now_s = [0.0]
    fetch = Fetches(unreachable)
    cache = RobotsCache(fetch, clock=lambda: now_s[0])
    await cache.rules("http://h")
    now_s[0] = kept_s - 1
    await cache.rules("http://h")
    assert len(fetch.origins) == 1
    now_s[0] = kept_s
    await cache.rules("http://h")
    assert len(fetch.origins) == 2


async def test_the_rules_used_longest_ago_make_room(monkeypatch):
    monkeypatch.setattr(robots_cache, "_MAX_ORIGINS", 2)
    fetch = Fetches()
    cache = RobotsCache(fetch)
    for origin in ("a", "b", "a", "c", "a", "b"):
        await cache.rules(origin)
    assert fetch.origins == ["a", "b", "c", "b"]


async def test_long_rules_make_room_for_each_other(monkeypatch):
    monkeypatch.setattr(robots_cache, "_MAX_BYTES", 2_500)
    fetched = []

    async def fetch(origin: str) -> RobotsRules:
        fetched.append(origin)
        return rules_from_answer(200, b"#" * 1_000, AGENT)

    cache = RobotsCache(fetch)
    for origin in ("a", "b", "a", "c", "a", "b"):
        await cache.rules(origin)
    assert fetched == ["a", "b", "c", "b"]


async def test_rules_longer_than_all_room_still_hold(monkeypatch):
    monkeypatch.setattr(robots_cache, "_MAX_BYTES", 10)

    async def fetch(origin: str) -> RobotsRules:
        return rules_from_answer(200, b"User-agent: *\nDisallow: /", AGENT)

    assert (await RobotsCache(fetch).rules("a")).refusal("http://a/") is not None


async def test_rules_that_many_ask_for_at_once_are_fetched_once():
    arrived, fetched = anyio.Event(), []

    async def fetch(origin):
        fetched.append(origin)
        await arrived.wait()
        return RobotsRules(AGENT)

    cache = RobotsCache(fetch)
    async with anyio.create_task_group() as tasks:
        for origin in "aab":
            tasks.start_soon(cache.rules, origin)
        await anyio.wait_all_tasks_blocked()
        arrived.set()
    assert sorted(fetched) == ["a", "b"]
    await cache.rules("a")
    assert len(fetched) == 2
