from __future__ import annotations

import random

import pytest

from stream2llm_rag.retrievers.crawler.relevance import terms_of
from stream2llm_rag.retrievers.crawler.similarity import SIGNATURE_BYTES, Signatures
from stream2llm_rag.retrievers.crawler.similarity import signature_of as signature_of_terms

from .conftest import crawl

WORDS = [f"word{i}" for i in range(5_000)]


def signature_of(text: str) -> bytes | None:
    return signature_of_terms(terms_of(text))


def text_of(seed: int, num_words: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def test_equal_texts_have_equal_signatures_whatever_their_case_and_layout():
    text = text_of(1)
    assert signature_of(text) == signature_of(text.upper().replace(" ", ",\n"))
    assert len(signature_of(text)) == SIGNATURE_BYTES


@pytest.mark.parametrize("num_changed", [0, 10, 40, 80])
def test_signatures_are_as_alike_as_their_texts(num_changed):
    words = text_of(1, 1_000).split()
    other = words.copy()
    for i in range(num_changed):
        other[i * 1_000 // num_changed] = f"changed{i}"
    num_runs, num_lost = 996, 5 * num_changed  # each word is in five runs
    expected = (num_runs - num_lost) / (num_runs + num_lost)
    seen = Signatures()
    seen.add(signature_of(" ".join(words)), "one")
    assert seen.nearest(signature_of(" ".join(other))).share == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("num_words", [60, 200, 2_000])
def test_the_estimate_is_off_by_chance_alone_and_by_little_however_long_the_texts_are(num_words):
    dice = random.Random(2)
    errors = []
    for seed in range(100):
        words = text_of(seed, num_words).split()
        other = [word if dice.random() > 0.01 else "changed" for word in words]
        seen = Signatures()
        seen.add(signature_of(" ".join(words)), "one")
        errors.append(seen.nearest(signature_of(" ".join(other))).share - likeness(words, other))
    assert abs(sum(errors) / len(errors)) < 0.01
    assert (sum(error**2 for error in errors) / len(errors)) ** 0.5 < 0.03


def likeness(one: list[str], other: list[str]) -> float:
    runs, others = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one, other))
    return len(runs & others) / len(runs | others)


def test_short_texts_are_not_alike_for_what_neither_has():
    seen = Signatures()
    seen.add(signature_of(text_of(1, 60)), "one")
    assert seen.nearest(signature_of(text_of(2, 60))).share == 0


def test_the_nearest_of_many_is_found():
    seen = Signatures()
    assert seen.nearest(signature_of(text_of(0))) is None
    for i in range(100):
        seen.add(signature_of(text_of(i)), f"page {i}")
    nearest = seen.nearest(signature_of(text_of(63) + " and more"))
    assert nearest.source == "page 63"
    assert 0.9 < nearest.share <= 1.0
    assert seen.nearest(signature_of(text_of(1_000))).share < 0.1


def test_scripts_without_spaces_are_compared_by_character():
    text = "".join(random.Random(1).choices("日本語文章比較文字検索結果要約資料", k=300))
    assert signature_of(text) is not None
    assert signature_of(text) == signature_of(text)


@pytest.mark.parametrize("text", ["", "a few words", "same " * 1_000, "\ud800 " * 100])
def test_short_or_uniform_texts_have_none(text):
    assert signature_of(text) is None


@pytest.mark.usefixtures("leaves_nothing")
async def test_a_page_that_is_nearly_another_is_left_out(site, crawler_on):
    site.page("/", "a", "print/a", "b")
    site.page("/a", text=text_of(1))
    site.page("/print/a", text=text_of(1) + " Printed from this site.")
    site.page("/b", text=text_of(2))
    result = await crawl(crawler_on("/", concurrency=1, order="breadth"))
    assert result.paths(site) == {"/", "/a", "/b"}
    [(source, reason)] = result.skipped.items()
    assert source == site.url("/print/a")
    assert reason.endswith(f"% of its wording is that of {site.url('/a')}")
    assert [event.category for event in result.events if event.kind == "skip"] == ["near_duplicate"]


@pytest.mark.usefixtures("leaves_nothing")
async def test_it_is_kept_where_the_caller_wants_it(site, crawler_on):
    site.page("/", "a", "print/a")
    site.page("/a", text=text_of(1))
    site.page("/print/a", text=text_of(1) + " Printed from this site.")
    assert len((await crawl(crawler_on("/", max_similarity=1))).documents) == 3
