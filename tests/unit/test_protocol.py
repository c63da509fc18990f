from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.protocol import EXTRA_ARGS_KEY, Op, OpKind, RefusedOpError, decode, encode

SECRET = "s3cret"
OPS = st.builds(Op, st.sampled_from(OpKind), st.booleans(), st.none() | st.integers(0, 10**6))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(OPS)
def test_an_operation_comes_back_as_it_went(op: Op) -> None:
    assert decode(encode(op, SECRET), SECRET) == op


@pytest.mark.parametrize("extra_args", [None, {}, {"kv_transfer_params": {}}])
def test_other_extra_args_carry_none(extra_args: dict[str, Any] | None) -> None:
    assert decode(extra_args, SECRET) is None


@given(OPS, st.text())
def test_without_the_secret_it_is_refused(op: Op, guess: str) -> None:
    if guess != SECRET:
        with pytest.raises(RefusedOpError):
            decode(encode(op, guess), SECRET)


def test_a_guess_that_is_no_text_is_refused() -> None:
    with pytest.raises(RefusedOpError):
        decode(encode(Op(OpKind.APPEND), "\ud800"), SECRET)


@given(OPS)
def test_an_engine_without_a_secret_refuses_all(op: Op) -> None:
    with pytest.raises(RefusedOpError):
        decode(encode(op, ""), "")


@given(JSON)
def test_whatever_else_comes_under_our_key_is_refused(fields: Any) -> None:
    with pytest.raises(RefusedOpError):
        decode({EXTRA_ARGS_KEY: fields}, SECRET)


@given(OPS, st.sampled_from(["op", "opens", "num_remaining"]), JSON)
def test_a_field_of_the_wrong_kind_is_refused(op: Op, field: str, value: Any) -> None:
    carried = encode(op, SECRET)
    carried[EXTRA_ARGS_KEY][field] = value
    try:
        decoded = decode(carried, SECRET)
    except RefusedOpError:
        return
    assert decoded is not None
    assert encode(decoded, SECRET) == carried  # it was a valid value after all
