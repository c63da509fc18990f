"""What the artifact of the paper tabulates about its workloads, and how near ours come."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.workloads import WORKLOADS, anns, crawler

NUM_QUERIES = 8000
NEAR = pytest.approx


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[-(-percent * len(ordered) // 100) - 1]


def figures(values):
    return [fmean(values), *(percentile(values, percent) for percent in (50, 75, 95))]


@pytest.fixture(scope="module")
def crawls():
    return crawler(NUM_QUERIES, qps=4.0, seed=1)


@pytest.fixture(scope="module")
def searches():
    return anns(NUM_QUERIES, qps=2.0, seed=1)


def gaps_ms(chunks):
    return [1000 * (later.after_s - earlier.after_s) for earlier, later in pairwise(chunks)]


def retrieval_s(queries):
    return [query.final_s - query.arrival_s for query in queries]


def test_crawls_bring_as_many_pages_as_in_the_paper(crawls):
    num_events = [1 + len(query.chunks) for query in crawls]  # the search call is one
    assert fmean(num_events) == NEAR(7.86, rel=0.1)
    assert percentile(num_events, 50) == 8
    assert max(num_events) == 17


def test_pages_of_crawls_follow_each_other_as_in_the_paper(crawls):
    gaps = [gap for query in crawls for gap in gaps_ms(query.chunks)]
    expected = {25: 387, 50: 701, 75: 1340, 95: 3078, 99: 5293}
    assert {percent: percentile(gaps, percent) for percent in expected} == NEAR(expected, rel=0.1)


def test_crawls_take_as_long_as_in_the_paper(crawls):
    assert figures(retrieval_s(crawls)) == NEAR([9.22, 8.67, 11.06, 16.40], rel=0.1)


def test_crawls_bring_as_many_tokens_as_in_the_paper(crawls):
    assert figures([query.num_prompt_tokens for query in crawls]) == NEAR([8889, 5749, 11167, 28372], rel=0.1)
    assert fmean(chunk.num_tokens for query in crawls for chunk in query.chunks) == NEAR(1300, rel=0.1)


def test_searches_correct_themselves_as_often_as_in_the_paper(searches):
    num_events = [len(query.chunks) for query in searches]
    assert fmean(num_events) == NEAR(4.42, rel=0.1)
    assert percentile(num_events, 50) == 4
    assert max(num_events) <= 26


def test_corrections_come_in_a_burst_as_in_the_paper(searches):
    gaps = [gap for query in searches for gap in gaps_ms(query.chunks)[:-1]]
    expected = {5: 1.4, 25: 11, 50: 37, 75: 124, 95: 699, 99: 2079}
    assert {percent: percentile(gaps, percent) for percent in expected} == NEAR(expected, rel=0.1)


def test_the_last_correction_comes_long_after_the_burst(searches):
    last_s = [gaps_ms(query.chunks)[-1] / 1000 for query in searches]
    since_first_s = [query.chunks[-1].after_s - query.chunks[0].after_s for query in searches]
    assert fmean(last_s) == NEAR(3.1, rel=0.1)
    assert fmean(since_first_s) == NEAR(3.6, rel=0.1)


def test_searches_take_as_long_as_in_the_paper(searches):
    assert figures(retrieval_s(searches)) == NEAR([4.47, 3.90, 5.33, 8.51], rel=0.1)


def test_searches_bring_as_many_tokens_as_in_the_paper(searches):
    assert figures([query.num_prompt_tokens for query in searches]) == NEAR([13006, 10126, 14615, 30618], rel=0.1)


def test_more_than_a_tenth_of_the_searches_end_by_replacing_over_10000_tokens(searches):
    replaced = [query.num_prompt_tokens - query.chunks[-1].num_kept for query in searches]
    assert 0.1 < fmean(num_tokens > 10_000 for num_tokens in replaced) < 0.2


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
def test_queries_come_at_the_rate_asked_for_and_unevenly(make):
    arrivals = [query.arrival_s for query in make(4000, qps=2.0, seed=3)]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert fmean(gaps) == NEAR(0.5, rel=0.1)
    assert fmean(gap * gap for gap in gaps) == NEAR(2 * 0.5**2, rel=0.2)  # of an exponential distribution


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
def test_a_seed_gives_the_same_queries_again_and_another_seed_others(make):
    assert make(20, 1.0, seed=5) == make(20, 1.0, seed=5)
    assert [query.chunks for query in make(20, 1.0, seed=5)] != [query.chunks for query in make(20, 1.0, seed=6)]


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
def test_another_rate_moves_the_same_queries(make):
    slow, fast = make(20, 1.0, seed=5), make(20, 4.0, seed=5)
    assert [query.arrival_s / 4 for query in slow] == NEAR([query.arrival_s for query in fast])
    assert [replace(query, arrival_s=0.0) for query in slow] == [replace(query, arrival_s=0.0) for query in fast]


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
def test_a_delay_stretches_the_gaps_and_nothing_else(make):
    for usual, slow in zip(make(20, 1.0, seed=5), make(20, 1.0, delay=10.0, seed=5), strict=True):
        assert gaps_ms(slow.chunks) == NEAR([10 * gap for gap in gaps_ms(usual.chunks)])
        assert [(chunk.num_tokens, chunk.num_kept) for chunk in slow.chunks] == [
            (chunk.num_tokens, chunk.num_kept) for chunk in usual.chunks
        ]


@pytest.mark.parametrize("wrong", [{"num_queries": 0}, {"qps": -1.0}, {"delay": 0.0}, {"qps": float("inf")}])
def test_numbers_that_are_not_above_zero_are_refused(wrong):
    with pytest.raises(InvalidInputError, match=f"{next(iter(wrong))} is"):
        crawler(**{"num_queries": 2, "qps": 1.0, **wrong})
