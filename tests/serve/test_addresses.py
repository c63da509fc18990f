from __future__ import annotations

from typing import Any

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.serve.addresses import authorization, stream_url, without_secrets


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:8000", "ws://host:8000/v1/stream"),
        ("http://host:8000/", "ws://host:8000/v1/stream"),
        ("https://host/v1", "wss://host/v1/stream"),
        ("https://host/llm/v1/", "wss://host/llm/v1/stream"),
        ("wss://host/v1/stream", "wss://host/v1/stream"),
        ("wss://host/v1/stream?zone=1", "wss://host/v1/stream?zone=1"),
        ("http://[::1]:8000", "ws://[::1]:8000/v1/stream"),
        ("HTTP://user:word@my_host", "ws://user:word@my_host/v1/stream"),
    ],
)
def test_an_address_of_any_kind_leads_to_the_websocket(url: str, expected: str) -> None:
    assert stream_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            None,
            "host:8000",
            "ftp://host",
            "http://",
            "http://:8000",
            "http://[::1",
            "http://host:99999",
            "http://host:port",
        ),
        *("http://host:0", "http://a host", "http://a..b", f"http://{'a' * 64}", "http://user@host"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_opened(url: Any) -> None:
    with pytest.raises(InvalidInputError, match="http://HOST:PORT"):
        stream_url(url)


def test_what_an_error_shows_of_an_address_has_no_secret() -> None:
    assert without_secrets("ws://user:word@host:1/v1/stream?token=word") == "ws://host:1/v1/stream"


@pytest.mark.parametrize(
    "url", ["http://s3cret@host", "http://user:s3cret@host:99999", "http//host/v1?key=s3cret", "http://user:s3cret?x@host"]
)
def test_an_address_that_is_refused_is_not_shown_where_it_may_hold_a_secret(url: str) -> None:
    with pytest.raises(InvalidInputError, match="not shown") as raised:
        stream_url(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("key", ["sesame\n", " sesame", "sesame\r\nX: 1", "\u0441\u0435\u0437\u0430\u043c", 5])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(InvalidInputError, match="api_key must be") as raised:
        authorization(key)
    assert str(key).strip() not in str(raised.value)


def test_a_key_may_have_a_blank_in_it_or_not_be_there() -> None:
    assert authorization("open sesame") == {"Authorization": "Bearer open sesame"}
    assert authorization(None) == authorization("") == {}
