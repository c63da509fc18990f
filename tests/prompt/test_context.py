"""What stands in a prompt, in what order, and within what budget. A word is a token here."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.documents import Append, ContextDelta, Document, Replace
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.prompt.context import MIN_CUT_TOKENS, ContextPrompt, DocumentFormat, Order

PREFIX, SUFFIX, OPENING, CLOSING = [1, 2, 3], [4, 5], (6,), (7, 8)
NUM_FIXED, NUM_FRAME = 5, 3


class Words:
    """Encodes a document as its words, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.encoded: list[Document] = []

    def __call__(self, document: Document) -> list[int]:
        self.encoded.append(document)
        return [hash((document.source, word)) for word in document.text.split()]


def page(name: str, num_words: int = 5) -> Document:
    return Document(" ".join(f"{name}{index}" for index in range(num_words)), name)


def open_prompt(
    *, room: int = 10_000, order: Order = "stable", max_document_tokens: int | None = None, words: Words | None = None
) -> ContextPrompt:
    return ContextPrompt(
        PREFIX,
        SUFFIX,
        DocumentFormat(OPENING, words or Words(), CLOSING),
        max_prompt_tokens=NUM_FIXED + room,
        order=order,
        max_document_tokens=max_document_tokens,
    )


def names(prompt: ContextPrompt) -> str:
    return "".join(slot.document.source for slot in prompt.documents)


def block(document: Document, num_tokens: int | None = None) -> list[int]:
    content = Words()(document)
    return [*OPENING, *content[: None if num_tokens is None else num_tokens - NUM_FRAME], *CLOSING]


A, B, C, D = (page(name) for name in "abcd")

pages = st.builds(page, st.sampled_from("abcdefgh"), st.integers(0, 150))
page_lists = st.lists(pages, max_size=6).map(tuple)
deltas = st.builds(Append, page_lists) | st.builds(Replace, page_lists)
rooms = st.integers(0, 600)


def test_a_prompt_starts_with_its_prefix_and_no_documents() -> None:
    prompt = open_prompt()
    assert (prompt.context_ids, prompt.documents, prompt.left_out) == (PREFIX, (), ())
    assert prompt.num_prompt_tokens == NUM_FIXED


def test_an_append_adds_only_new_tokens_at_the_end() -> None:
    prompt = open_prompt()
    prompt.apply(Append((A,)))
    change = prompt.apply(Append((B, C)))
    assert change is not None
    assert (change.kind, change.token_ids) == ("append", block(B) + block(C))
    assert prompt.context_ids == PREFIX + block(A) + block(B) + block(C)


def test_a_delta_without_new_documents_changes_nothing() -> None:
    prompt = open_prompt()
    assert prompt.apply(Append(())) is None
    prompt.apply(Append((A, B)))
    assert prompt.apply(Append((B, A))) is None
    assert prompt.apply(Replace((B, A))) is None
    assert names(prompt) == "ab"


def test_documents_are_the_same_by_source_and_text() -> None:
    prompt = open_prompt()
    prompt.apply(Append((Document("x", "a"), Document("x", "a", title="again"), Document("y", "a"), Document("x", "b"))))
    assert [(slot.document.source, slot.document.text) for slot in prompt.documents] == [("a", "x"), ("a", "y"), ("b", "x")]


def test_stable_order_keeps_what_stays_and_puts_new_documents_behind() -> None:
    prompt = open_prompt(order="stable")
    prompt.apply(Replace((A, B, C)))
    change = prompt.apply(Replace((D, C, A)))
    assert change is not None
    assert (change.kind, change.token_ids) == ("update", PREFIX + block(A) + block(C) + block(D))


def test_rank_order_follows_the_retriever() -> None:
    prompt = open_prompt(order="rank")
    prompt.apply(Replace((A, B, C)))
    change = prompt.apply(Replace((D, C, A)))
    assert change is not None
    assert (change.kind, change.token_ids) == ("update", PREFIX + block(D) + block(C) + block(A))


def test_a_replace_that_only_adds_at_the_end_is_an_append() -> None:
    prompt = open_prompt(order="rank")
    prompt.apply(Replace((A,)))
    change = prompt.apply(Replace((A, B)))
    assert change is not None
    assert (change.kind, change.token_ids) == ("append", block(B))


def test_a_replace_may_empty_the_context() -> None:
    prompt = open_prompt()
    prompt.apply(Append((A,)))
    change = prompt.apply(Replace(()))
    assert change is not None
    assert (change.kind, change.token_ids) == ("update", PREFIX)
    assert prompt.documents == ()


def test_append_and_replace_may_take_turns() -> None:
    prompt = open_prompt()
    prompt.apply(Append((A, B)))
    prompt.apply(Replace((C, B)))
    change = prompt.apply(Append((A,)))
    assert change is not None
    assert (change.kind, names(prompt)) == ("append", "bca")


@pytest.mark.parametrize("delta", [Append, Replace])
def test_a_document_that_stays_is_reported_with_its_latest_score(delta: type[Append] | type[Replace]) -> None:
    prompt = open_prompt()
    prompt.apply(delta((Document("x", "a", score=0.1),)))
    assert prompt.apply(delta((Document("x", "a", score=0.9),))) is None
    assert [slot.document.score for slot in prompt.documents] == [0.9]


def test_two_documents_with_equal_tokens_may_change_places_unnoticed() -> None:
    prompt = open_prompt(order="rank")
    one, other = Document("x  y", "a"), Document("x y", "a")
    prompt.apply(Replace((one,)))
    assert prompt.apply(Replace((other,))) is None
    assert [slot.document for slot in prompt.documents] == [other]


def test_the_first_document_that_does_not_fit_is_cut_and_the_rest_left_out() -> None:
    prompt = open_prompt(room=NUM_FRAME + 5 + MIN_CUT_TOKENS)
    long, short = page("l", 1000), page("s", 1)
    prompt.apply(Append((A, long, short)))
    assert [(slot.document, slot.num_tokens, slot.truncated) for slot in prompt.documents] == [
        (A, NUM_FRAME + 5, False),
        (long, MIN_CUT_TOKENS, True),
    ]
    assert prompt.left_out == (short,)
    assert prompt.context_ids == PREFIX + block(A) + block(long, MIN_CUT_TOKENS)


def test_a_document_is_left_out_where_too_little_of_it_would_fit() -> None:
    prompt = open_prompt(room=NUM_FRAME + 5 + MIN_CUT_TOKENS - 1)
    long, short = page("l", 1000), page("s", 1)
    prompt.apply(Append((A, long, short)))
    assert (names(prompt), prompt.left_out) == ("a", (long, short))


def test_a_short_document_fits_into_the_last_tokens_of_the_budget() -> None:
    prompt = open_prompt(room=2 * (NUM_FRAME + 5))
    prompt.apply(Append((A, B, C)))
    assert (names(prompt), prompt.left_out) == ("ab", (C,))
    assert not any(slot.truncated for slot in prompt.documents)


def test_what_comes_after_a_full_context_is_left_out_and_not_even_tokenised() -> None:
    words = Words()
    prompt = open_prompt(room=NUM_FRAME + 5, words=words)
    prompt.apply(Append((A, B)))
    assert prompt.apply(Append((C, D))) is None
    assert prompt.left_out == (B, C, D)
    assert words.encoded == [A, B]


def test_a_document_that_was_left_out_finds_room_when_others_go() -> None:
    prompt = open_prompt(room=NUM_FRAME + 5)
    prompt.apply(Append((A, B)))
    prompt.apply(Replace((B,)))
    assert (names(prompt), prompt.left_out) == ("b", ())


def test_each_document_is_cut_to_its_own_limit() -> None:
    prompt = open_prompt(max_document_tokens=NUM_FRAME + 2)
    prompt.apply(Append((A, page("s", 2))))
    assert [(slot.num_tokens, slot.truncated) for slot in prompt.documents] == [(5, True), (5, False)]
    assert prompt.context_ids == PREFIX + block(A, 5) + block(page("s", 2))


@pytest.mark.parametrize("limit", [-1, 0, NUM_FRAME])
def test_a_limit_that_leaves_a_document_no_text_is_refused(limit: int) -> None:
    with pytest.raises(InvalidInputError, match=f"max_document_tokens is {limit}.* take {NUM_FRAME} tokens"):
        open_prompt(max_document_tokens=limit)


def test_lists_that_were_handed_out_do_not_change_later() -> None:
    prompt = open_prompt()
    context_ids, change = prompt.context_ids, prompt.apply(Append((A,)))
    assert change is not None
    appended = list(change.token_ids)
    updated = prompt.apply(Replace((B,)))
    assert updated is not None
    full = list(updated.token_ids)
    prompt.apply(Append((C,)))
    assert (context_ids, change.token_ids, updated.token_ids) == (PREFIX, appended, full)


@given(st.lists(deltas, max_size=8), rooms, st.sampled_from(["stable", "rank"]), st.none() | st.integers(NUM_FRAME + 1, 100))
def test_the_context_is_always_the_sum_of_its_parts(
    changes: list[ContextDelta], room: int, order: Order, max_document_tokens: int | None
) -> None:
    words = Words()
    prompt = open_prompt(room=room, order=order, max_document_tokens=max_document_tokens, words=words)
    engine_ids = prompt.context_ids
    for delta in changes:
        change = prompt.apply(delta)
        if change is not None:
            engine_ids = engine_ids + change.token_ids if change.kind == "append" else change.token_ids
            assert change.token_ids
        parts = [block(slot.document, slot.num_tokens) for slot in prompt.documents]
        assert engine_ids == prompt.context_ids == PREFIX + [token for part in parts for token in part]
        assert [len(part) for part in parts] == [slot.num_tokens for slot in prompt.documents]
        assert prompt.num_prompt_tokens <= NUM_FIXED + room
        assert all(slot.truncated == (slot.num_tokens < len(block(slot.document))) for slot in prompt.documents)
        assert all(slot.num_tokens <= (max_document_tokens or room) for slot in prompt.documents)
        assert all(document in words.encoded for document in (slot.document for slot in prompt.documents))
    assert len(words.encoded) == len(set(words.encoded))


@given(st.lists(page_lists, max_size=8), rooms)
def test_appends_only_ever_extend_the_context(changes: list[tuple[Document, ...]], room: int) -> None:
    prompt = open_prompt(room=room)
    for documents in changes:
        before, num_placed = prompt.context_ids, len(prompt.documents)
        placed = prompt.documents
        prompt.apply(Append(documents))
        assert prompt.context_ids[: len(before)] == before
        assert prompt.documents[:num_placed] == placed


@given(st.lists(deltas, max_size=8), rooms, st.sampled_from(["stable", "rank"]))
def test_no_document_is_lost_silently(changes: list[ContextDelta], room: int, order: Order) -> None:
    prompt = open_prompt(room=room, order=order)
    wanted: set[Document] = set()
    for delta in changes:
        wanted = wanted | set(delta.documents) if isinstance(delta, Append) else set(delta.documents)
        prompt.apply(delta)
        reported = [*(slot.document for slot in prompt.documents), *prompt.left_out]
        assert len(reported) == len(wanted)
        assert set(reported) == wanted


@given(page_lists, page_lists)
def test_stable_order_keeps_at_least_as_many_leading_documents_as_rank_order(
    first: tuple[Document, ...], second: tuple[Document, ...]
) -> None:
    def num_kept(order: Order) -> int:
        prompt = open_prompt(order=order)
        prompt.apply(Replace(first))
        before = prompt.documents
        prompt.apply(Replace(second))
        pairs = zip(before, prompt.documents, strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    assert num_kept("stable") >= num_kept("rank")


@given(page_lists, page_lists)
def test_a_stable_replace_changes_nothing_before_the_first_document_that_goes(
    first: tuple[Document, ...], second: tuple[Document, ...]
) -> None:
    prompt = open_prompt()
    prompt.apply(Replace(first))
    before = prompt.documents
    prompt.apply(Replace(second))
    staying = list(takewhile(lambda slot: slot.document in second, before))
    assert list(prompt.documents[: len(staying)]) == staying
