from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.retrievers.crawler.relevance import Passages, estimate_tokens, excerpt, passages_of, scores_of

QUESTION = "How do I cancel a task in asyncio?"


def test_what_answers_comes_before_what_mentions_and_both_before_the_rest():
    scores = scores_of(
        QUESTION, ["Cancel a task of asyncio", "The asyncio module, its loops and its streams", "Regular expressions"]
    )
    assert scores[0] > scores[1] > scores[2] == 0


@given(st.lists(st.text("abcd ", max_size=30), max_size=10), st.text("abcd ", max_size=10))
def test_scores_lie_between_none_and_all_and_the_question_itself_is_all(texts, question):
    scores = scores_of(question, [*texts, question])
    assert all(0 <= score <= 1 for score in scores)
    assert scores[-1] == (1 if set(question.split()) - {"a"} else 0)


def test_a_word_that_all_texts_have_counts_for_little():
    scores = scores_of("asyncio cancel", ["asyncio cancel", "asyncio streams", "asyncio queues", "cancel"])
    assert scores[3] > scores[1]


@pytest.mark.parametrize("question", ["", "???", "How do I do this?"])
def test_a_question_without_a_telling_word_tells_nothing(question):
    assert scores_of(question, ["How do I do this?", ""]) == [0, 0]


def test_scripts_without_spaces_are_compared_by_character():
    near, far = scores_of("東京の天気", ["明日の東京は晴れ", "猫が好き"])
    assert near > far == 0


@given(st.text("ab. \n。", max_size=4_000))
def test_passages_hold_the_whole_text_in_pieces_of_limited_size(text):
    passages = list(passages_of(text))
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(0 < len(passage) <= 800 for passage in passages if passage)


@given(st.lists(st.text("ab.", min_size=1, max_size=30), min_size=100))
def test_no_word_is_cut_that_fits_into_a_passage(words):
    assert " ".join(passages_of(" ".join(words))).split() == words


def page(num_filler: int, *telling: int) -> str:
    sections = [f"Section {i}. " + "Lorem ipsum dolor sit amet. " * 25 for i in range(num_filler)]
    for i in telling:
        sections[i] = f"Section {i}. To cancel a task of asyncio, call its method of that name. " * 8
    return "\n".join(sections)


def test_a_long_page_is_cut_to_the_passages_that_answer_in_their_order():
    kept = excerpt(QUESTION, Passages.of(page(20, 4, 13)), max_tokens=420)
    assert kept.is_cut
    assert [number for number in range(20) if f"Section {number}." in kept.text] == [4, 13]
    assert kept.text.index("Section 4.") < kept.text.index("[…]") < kept.text.index("Section 13.")


def test_a_page_within_the_budget_stays_as_it_is():
    text = page(3, 1)
    kept = excerpt(QUESTION, Passages.of(text), max_tokens=10_000)
    assert (kept.text, kept.is_cut) == (text, False)
    assert kept.score == excerpt(QUESTION, Passages.of(text)).score > 0


@given(st.lists(st.text(st.sampled_from("cancel tsk\n.é東"), max_size=900), max_size=8), st.integers(1, 600))
def test_no_excerpt_is_over_its_budget(lines, max_tokens):
    assert estimate_tokens(excerpt("cancel task 東", Passages.of("\n".join(lines)), max_tokens).text) <= max_tokens


@pytest.mark.parametrize("max_tokens", [1, 50, 180])
@pytest.mark.parametrize(("sentence", "question"), [("The sea is wide ", "where is the sea?"), ("  海は広いな大きいな", "海")])
def test_of_a_passage_that_alone_is_over_the_budget_the_beginning_is_kept(sentence, question, max_tokens):
    kept = excerpt(question, Passages.of(f"{'-' * 5_000}\n{sentence * 200}"), max_tokens)
    assert kept.text
    assert (sentence * 200).lstrip().startswith(kept.text)
    assert max_tokens - 1 <= estimate_tokens(kept.text) <= max_tokens
    assert kept.is_cut


def test_tokens_are_estimated_by_script():
    assert [estimate_tokens(text) for text in ("", "word", "words", "東京", "word 東京")] == [0, 1, 2, 2, 4]
