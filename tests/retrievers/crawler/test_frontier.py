from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.retrievers.crawler.frontier import Frontier, Target
from stream2llm_rag.retrievers.crawler.urls import origin_of

TARGETS = st.lists(
    st.builds(
        lambda host, page, depth: Target(f"http://{host}/{page}", f"http://{host}/{page}", depth),
        st.sampled_from("abc"),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
    max_size=40,
)


def target(url: str, depth: int = 0, key: str | None = None) -> Target:
    return Target(url, key or url, depth)


def drain(frontier: Frontier) -> list[Target]:
    targets = []
    while (each := frontier.pop(lambda origin: 0.0)) is not None:
        targets.append(each)
    return targets


@given(TARGETS, st.integers(1, 40))
def test_every_page_comes_once_and_no_more_than_the_frontier_may_hold(targets, max_urls):
    frontier = Frontier(max_urls=max_urls)
    added = [each for each in targets if frontier.add(each)]
    popped = drain(frontier)
    assert Counter(popped) == Counter(added)
    assert len({each.key for each in popped}) == len(popped) == min(max_urls, len({each.key for each in targets}))
    assert len(frontier) == 0


SCORED = st.lists(
    st.builds(
        lambda host, page, depth, score: Target(f"http://{host}/{page}", f"http://{host}/{page}", depth, score=score),
        st.sampled_from("abc"),
        st.integers(0, 9),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    max_size=40,
)


@given(SCORED)
def test_the_best_come_first_and_among_equals_the_least_deep(targets):
    frontier = Frontier(max_urls=100)
    queued = {each for each in targets if frontier.add(each)}
    for turn, each in enumerate(drain(frontier)):
        if turn % 4 != 3:
            assert (-each.score, each.depth) == min((-other.score, other.depth) for other in queued)
        queued.remove(each)


@given(SCORED)
def test_every_fourth_turn_goes_to_the_host_served_longest_ago_and_to_its_best(targets):
    frontier = Frontier(max_urls=100)
    queued = {each for each in targets if frontier.add(each)}
    last_turn: dict[str, int] = {}
    for turn, each in enumerate(drain(frontier)):
        origins = {origin_of(other.url) for other in queued}
        if turn % 4 == 3:
            assert last_turn.get(origin_of(each.url), -1) == min(last_turn.get(origin, -1) for origin in origins)
            assert each.score == max(other.score for other in queued if origin_of(other.url) == origin_of(each.url))
        last_turn[origin_of(each.url)] = turn
        queued.remove(each)


@given(TARGETS)
def test_hosts_of_one_depth_take_turns(targets):
    frontier = Frontier(max_urls=100)
    for each in targets:
        frontier.add(target(each.url))
    popped = [origin_of(each.url) for each in drain(frontier)]
    left = Counter(popped)
    for i, origin in enumerate(popped):
        waiting = {other for other in left if left[other] > 0 and other != origin}
        served_since = popped[max((j for j in range(i) if popped[j] == origin), default=-1) + 1 : i]
        if origin in popped[:i]:  # nobody is served twice while another that waits is not served in between
            assert waiting <= set(served_since)
        left[origin] -= 1


def test_a_host_that_is_not_ready_is_passed_over_and_not_forgotten():
    frontier = Frontier(max_urls=10)
    frontier.add(target("http://a/1"))
    frontier.add(target("http://b/1", depth=2))
    assert frontier.pop(lambda origin: math.inf if origin == "http://a" else 0.0).url == "http://b/1"
    assert frontier.pop(lambda origin: 1.5) is None
    assert frontier.next_ready_s(lambda origin: 1.5) == 1.5
    assert frontier.pop(lambda origin: 0.0).url == "http://a/1"
    assert frontier.next_ready_s(lambda origin: 0.0) == math.inf


def test_a_page_under_another_url_is_not_queued_again():
    frontier = Frontier(max_urls=10)
    assert frontier.add(target("http://a/1?utm_source=x", key="http://a/1"))
    assert not frontier.add(target("http://a/1"))


def test_a_settled_page_is_not_given_out_any_more():
    frontier = Frontier(max_urls=10)
    frontier.add(target("http://a/1"))
    frontier.add(target("http://a/2"))
    assert frontier.settle("http://a/0", "http://a/1")
    assert [each.url for each in drain(frontier)] == ["http://a/2"]


def test_a_page_settles_once_under_any_of_its_identities():
    frontier = Frontier(max_urls=10)
    assert frontier.settle("http://a/1", "http://a/canonical")
    assert not frontier.settle("http://a/2", "http://a/canonical")
    assert frontier.settle("http://a/2")


def test_a_closed_host_gives_nothing_more():
    frontier = Frontier(max_urls=10)
    for url in ("http://a/1", "http://b/1"):
        frontier.add(target(url))
    frontier.close("http://a")
    assert not frontier.add(target("http://a/2"))
    assert frontier.is_closed("http://a/3")
    assert len(frontier) == 1
    assert drain(frontier) == [target("http://b/1")]
