from __future__ import annotations

import pytest

from stream2llm_rag.errors import CapacityError, InvalidInputError
from stream2llm_rag.serve.limits import Clients, Limits, client_of, is_origin_allowed


def test_a_client_has_so_many_places_and_gets_them_back() -> None:
    clients = Clients(2)
    with clients.place("a"), clients.place("a"), clients.place("b"):
        assert clients.num_streams == 3
        with pytest.raises(CapacityError, match="2 streams, the limit is 2"), clients.place("a"):
            pass
    assert clients.num_streams == 0
    with clients.place("a"):
        assert clients.num_streams == 1


@pytest.mark.parametrize("name", ["max_message_bytes", "max_context_tokens", "max_streams_per_client", "idle_timeout_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_lets_nothing_through_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} must be above 0"):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_holders_of_one_key_are_one_client_wherever_they_are() -> None:
    first = client_of({"authorization": "Bearer a"}, "10.0.0.1", has_keys=True)
    assert first == client_of({"authorization": "Bearer a"}, "10.0.0.2", has_keys=True)
    assert first == client_of({"authorization": "bEARER a"}, "10.0.0.1", has_keys=True)  # vLLM lets that through, too
    assert first != client_of({"authorization": "Bearer b"}, "10.0.0.1", has_keys=True)
    assert "Bearer" not in first


def test_without_keys_an_address_is_a_client_whatever_it_sends() -> None:
    assert client_of({"authorization": "Bearer a"}, "10.0.0.1", has_keys=False) == "10.0.0.1"
    assert client_of({}, None, has_keys=False) == "local"


@pytest.mark.parametrize(
    ("headers", "allowed", "may"),
    [
        ({}, (), True),
        ({"origin": "https://evil.example", "host": "localhost:8000"}, (), False),
        ({"origin": "null", "host": "localhost:8000"}, (), False),
        ({"origin": "http://localhost:8000", "host": "localhost:8000"}, (), True),
        ({"origin": "http://LOCALHOST:8000", "host": "localhost:8000"}, (), True),
        ({"origin": "https://app.example", "host": "llm.example"}, ("https://app.example",), True),
        ({"origin": "https://app.example", "host": "llm.example"}, ("https://other.example",), False),
        ({"origin": "https://app.example", "host": "llm.example"}, ("*",), True),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, (), True),
        ({"origin": "http://rebound.example:8000", "host": "rebound.example:8000"}, (), False),
        ({"origin": "", "host": ""}, (), False),
        ({"origin": "http://[", "host": "["}, (), False),
        ({"origin": "http://[evil]", "host": "[evil]"}, (), False),
    ],
)
def test_a_page_of_another_origin_needs_leave(headers: dict[str, str], allowed: tuple[str, ...], may: bool) -> None:
    assert is_origin_allowed(headers, allowed) is may
