from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.retrievers.crawler.pages import Focus, Link, Outline, Page
from stream2llm_rag.retrievers.crawler.similarity import SIGNATURE_BYTES
from stream2llm_rag.retrievers.crawler.wire import (
    LENGTH,
    Failure,
    Ready,
    Text,
    decode_page,
    decode_reply,
    encode_page,
    encode_reply,
)

TEXTS = st.text(max_size=50)
SCORES = st.floats(0, 1)
SIGNATURES = st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES)
REPLIES = st.one_of(
    st.just(Ready()),
    st.builds(
        Outline,
        st.none() | TEXTS,
        st.none() | TEXTS.filter(bool),
        st.lists(st.builds(Link, TEXTS, SCORES)).map(tuple),
        st.none() | TEXTS,
    ),
    st.builds(Text, TEXTS, st.none() | SCORES, st.booleans(), st.none() | SIGNATURES),
    st.builds(Failure, TEXTS),
)


@given(REPLIES)
def test_replies_survive_the_pipe(reply):
    encoded = encode_reply(reply)
    assert LENGTH.unpack(encoded[: LENGTH.size]) == (len(encoded) - LENGTH.size,)
    assert decode_reply(encoded[LENGTH.size :]) == reply


@given(
    st.builds(Page, TEXTS, TEXTS, st.binary(max_size=50)), st.builds(Focus, st.none() | TEXTS, st.none() | st.integers(1, 99))
)
def test_pages_survive_the_pipe_with_what_is_looked_for(page, focus):
    encoded = encode_page(page, focus)
    (size,) = LENGTH.unpack(encoded[: LENGTH.size])
    head, rest = encoded[LENGTH.size : LENGTH.size + size], encoded[LENGTH.size + size :]
    assert decode_page(head, rest[LENGTH.size :]) == (page, focus)


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xff", b"{}", b"[]", b'["Text", {}]', b'["Text", {"text": 1, "score": null, "is_cut": false}]', b'["os", {}]',
        b'["Outline", {"title": null, "canonical": null, "links": [["http://h/", "high"]], "date": null}]',
        b'["Text", {"text": "", "score": null, "is_cut": false, "signature": "00ff"}]',
        b'["Text", {"text": "", "score": null, "is_cut": false, "signature": "no"}]',
    ],
)  # fmt: skip
def test_anything_else_is_a_value_error(payload):
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own and ours
        decode_reply(payload)
