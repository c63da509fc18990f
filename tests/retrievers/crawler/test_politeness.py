from __future__ import annotations

import math

import pytest

from stream2llm_rag.retrievers.crawler import politeness as politeness_module
from stream2llm_rag.retrievers.crawler.politeness import Politeness

H = "http://h"


def test_one_request_goes_to_a_host_whose_robots_are_not_known():
    politeness = Politeness(max_active=4, delay_s=0.0)
    politeness.start(H, 0.0)
    assert politeness.wait_s(H, 0.0) == math.inf
    politeness.learn(H, 0.0, 0.0)
    assert politeness.wait_s(H, 0.0) == 0.0


def test_no_more_requests_at_once_than_allowed():
    politeness = Politeness(max_active=2, delay_s=0.0)
    politeness.start(H, 0.0)
    politeness.learn(H, 0.0, 0.0)
    politeness.start(H, 0.0)
    assert politeness.wait_s(H, 0.0) == math.inf
    assert politeness.wait_s("http://other", 0.0) == 0.0
    politeness.end(H)
    assert politeness.wait_s(H, 0.0) == 0.0


def test_starts_keep_their_distance():
    politeness = Politeness(max_active=2, delay_s=3.0)
    politeness.start(H, 10.0)
    politeness.learn(H, 0.0, 10.0)
    assert politeness.wait_s(H, 11.0) == 2.0
    assert politeness.wait_s(H, 14.0) == 0.0


@pytest.mark.parametrize(("own_s", "asked_s", "kept_s"), [(1.0, 5.0, 5.0), (5.0, 1.0, 5.0)])
def test_the_longer_delay_holds_and_counts_from_the_request_after_robots(own_s, asked_s, kept_s):
    politeness = Politeness(max_active=2, delay_s=own_s)
    politeness.start(H, 0.0)
    politeness.learn(H, asked_s, 2.0)
    assert politeness.wait_s(H, 2.0) == kept_s


def test_idle_hosts_are_forgotten_and_busy_ones_are_not(monkeypatch):
    monkeypatch.setattr(politeness_module, "_MAX_ORIGINS", 2)
    politeness = Politeness(max_active=1, delay_s=0.0)
    politeness.start("http://busy", 0.0)
    politeness.start("http://idle", 0.0)
    politeness.learn("http://idle", 1.0, 0.0)
    politeness.end("http://idle")
    politeness.start("http://new", 5.0)
    assert politeness.wait_s("http://busy", 5.0) == math.inf
    politeness.start("http://idle", 5.0)
    assert politeness.wait_s("http://idle", 5.5) == math.inf  # unknown again: one at a time
    politeness.end("http://busy")


def test_a_host_left_with_less_than_a_slot_rests_between_requests():
    politeness = Politeness(max_active=2, delay_s=0.0)
    politeness.start(H, 0.0)
    politeness.learn(H, 0.0, 0.0)
    politeness.end(H)
    politeness.answered(H, 0.5)  # at its best: up to 1 s is no slowdown
    for _ in range(50):
        politeness.answered(H, 4.0)  # 4 times slower than that: half a slot is left
    politeness.start(H, 10.0)
    politeness.end(H)
    assert politeness.wait_s(H, 10.0) == pytest.approx(8.0)  # one answer of 4 s, and as long a rest
    for _ in range(50):
        politeness.answered(H, 400.0)
    politeness.start(H, 100.0)
    politeness.end(H)
    assert politeness.wait_s(H, 100.0) == 10.0
    for _ in range(50):
        politeness.answered(H, 0.5)
    politeness.start(H, 200.0)
    politeness.end(H)
    assert politeness.wait_s(H, 200.0) == 0.0


def test_a_request_that_was_not_needed_leaves_no_distance_to_the_next():
    politeness = Politeness(max_active=2, delay_s=3.0)
    for origin in (H, "http://other"):
        politeness.start(origin, 10.0)
        politeness.learn(origin, 0.0, 10.1)
        politeness.end(origin)
    politeness.spared(H, 10.0)
    assert politeness.wait_s(H, 10.2) == 0.0
    assert politeness.wait_s("http://other", 10.1) == 3.0
    politeness.start(H, 10.2)
    politeness.end(H)
    politeness.spared(H, 10.0)  # another one has started since
    assert politeness.wait_s(H, 10.2) == 3.0


def test_a_request_that_was_not_needed_shortens_no_rest():
    politeness = Politeness(max_active=2, delay_s=0.0)
    politeness.start(H, 10.0)
    politeness.learn(H, 0.0, 10.0)
    politeness.overloaded(H, 5.0, 10.0)
    politeness.end(H)
    politeness.spared(H, 10.0)
    assert politeness.wait_s(H, 10.0) == 5.0
