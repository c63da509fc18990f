"""The protocol: what is published, what is taken, and what is refused with which words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.errors import (
    CapacityError,
    EngineDied,
    EngineError,
    EngineUnreachable,
    InvalidInputError,
    PromptTooLongError,
    Stream2LLMError,
)
from stream2llm_rag.serve import messages, schema
from stream2llm_rag.serve.clock import RemoteClock
from stream2llm_rag.serve.codes import REFUSALS, code_of, error_of
from stream2llm_rag.serve.messages import (
    Append,
    Cancel,
    ClientMessage,
    Describe,
    Finish,
    Open,
    Output,
    Ping,
    Sampling,
    Update,
    decode_client,
    decode_server,
    encode,
    from_output,
    to_output,
)

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = json.loads((DOCS / "stream-v1.schema.json").read_text())
FROM_CLIENTS = jsonschema.Draft202012Validator({**PUBLISHED, "anyOf": [{"$ref": "#/$defs/ClientMessage"}]})

TOKENS = st.lists(st.integers(0, 10**6), max_size=20)
MESSAGES: st.SearchStrategy[ClientMessage] = st.one_of(
    st.builds(Describe),
    st.builds(Open, tokens=TOKENS, cache_salt=st.none() | st.text(min_size=1, max_size=256)),
    st.builds(Append, text=st.text(), formatted=st.booleans(), num_remaining=st.none() | st.integers(0, 99)),
    st.builds(Update, tokens=TOKENS),
    st.builds(Finish, tokens=TOKENS, sampling=st.builds(Sampling, max_tokens=st.none() | st.integers(1, 99))),
    st.builds(Cancel),
    st.builds(Ping, sent_s=st.floats(0, 1e9)),
)


def test_the_published_schema_is_that_of_the_code() -> None:
    """If this fails: python -m stream2llm_rag.serve.schema > docs/stream-v1.schema.json"""
    assert (DOCS / "stream-v1.schema.json").read_text() == schema.text()


def test_the_published_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)


@given(MESSAGES)
def test_what_is_sent_is_read_as_it_was_and_follows_the_schema(message: ClientMessage) -> None:
    data = encode(message)
    assert decode_client(data) == message
    FROM_CLIENTS.validate(json.loads(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "missing required field `type`"),
        ('{"type": "shout"}', "Invalid value 'shout'"),
        ('{"type": "append", "tokens": [1], "remaining": 3}', "unknown field `remaining`"),
        ('{"type": "append", "tokens": [-1]}', r"`int` >= 0 - at `\$.tokens"),
        ('{"type": "append", "tokens": [1.5]}', r"Expected `int`, got `float` - at `\$.tokens"),
        ('{"type": "append", "tokens": "1 2"}', r"Expected `array.*at `\$.tokens`"),
        ('{"type": "finish", "sampling": {"extra_args": {}}}', "unknown field `extra_args`"),
        ('{"type": "finish", "sampling": {"n": 2}}', "unknown field `n`"),
        ('{"type": "finish", "sampling": {"max_tokens": 0}}', r"at `\$.sampling.max_tokens`"),
        ('{"type": "finish", "sampling": {"min_tokens": 2147483648}}', r"at `\$.sampling.min_tokens`"),
        ('{"type": "finish", "sampling": {"top_k": 2147483648}}', r"at `\$.sampling.top_k`"),
        ('{"type": "finish", "sampling": {"seed": 9223372036854775808}}', r"at `\$.sampling.seed`"),
        (f'{{"type": "finish", "sampling": {{"stop_token_ids": {[7] * 97}}}}}', r"at `\$.sampling.stop_token_ids`"),
        (f'{{"type": "finish", "sampling": {{"bad_words": ["{"x" * 17}"]}}}}', r"at `\$.sampling.bad_words"),
        ('{"type": "append", "tokens": [1], "num_remaining": 2147483648}', r"at `\$.num_remaining`"),
        (b'{"type": "append", "text": "\xff"}', "stream2llm.v1"),
        ("[" * 100_000, "stream2llm.v1"),
    ],
)
def test_a_message_that_is_none_is_refused_with_what_is_wrong_and_where(data: str | bytes, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        decode_client(data)


def test_an_unknown_field_of_a_newer_server_is_passed_over() -> None:
    assert decode_server('{"type": "accepted", "since": "1.1"}') == messages.Accepted()


def test_log_probabilities_arrive_by_token_and_never_as_infinity() -> None:
    @dataclass
    class Logprob:
        logprob: float
        rank: int | None
        decoded_token: str | None

    delta = OutputDelta("a", (5,), "stop", [{5: Logprob(-0.5, 1, "a"), 6: Logprob(float("-inf"), 9, "b")}])
    again = decode_server(encode(to_output(delta)))
    assert isinstance(again, Output)
    back = from_output(again)
    assert (back.text, back.token_ids, back.finish_reason) == ("a", (5,), "stop")
    assert {token: (one.logprob, one.rank, one.decoded_token) for token, one in back.logprobs[0].items()} == {
        5: (-0.5, 1, "a"),
        6: (-9999.0, 9, "b"),
    }


@pytest.mark.parametrize("code", REFUSALS)
def test_a_code_is_documented_and_becomes_its_error(code: str) -> None:
    error = error_of(code, "why")
    assert type(error) is REFUSALS[code].error
    assert str(error) == "why"
    assert re.search(
        rf"^\| `{code}` \| {REFUSALS[code].close} \| `{type(error).__name__}` \|", (DOCS / "serve.md").read_text(), re.M
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptTooLongError("x"), "prompt_too_long"),
        (InvalidInputError("x"), "invalid_input"),
        (CapacityError("x"), "capacity"),
        (EngineDied("x"), "engine_died"),
        (EngineError("x"), "internal"),
    ],
)
def test_an_error_has_the_code_of_its_nearest_kind(error: Stream2LLMError, code: str) -> None:
    assert code_of(error) == code


def test_a_code_of_a_newer_server_is_an_error_of_the_engine() -> None:
    assert type(error_of("unheard_of", "x")) is EngineError


@given(offset=st.floats(-1e6, 1e6), delays=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=9))
def test_a_remote_time_is_off_by_half_the_fastest_round_trip_at_most(offset: float, delays: list[tuple[float, float]]) -> None:
    clock, now = RemoteClock(), 100.0
    for there, back in delays:
        clock.note(now, now + there + offset, now + there + back)
        now += there + back
    bound = min(there + back for there, back in delays) / 2
    assert abs(clock.ours(50.0 + offset) - 50.0) <= bound + 1e-6


def test_every_error_of_a_connection_is_below_that_of_the_library() -> None:
    assert all(issubclass(refusal.error, Stream2LLMError) for refusal in REFUSALS.values())
    assert issubclass(EngineUnreachable, EngineError)
