from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import pytest

from stream2llm_rag import DisaggregatedEngine, Stream2LLMEngine
from stream2llm_rag.engine import roles
from stream2llm_rag.engine.roles import PORT_VARIABLE, Role, connector_fields, side_by_side, side_channel
from stream2llm_rag.errors import EngineStartError, InvalidInputError, LifecycleError, MissingExtraError

CONNECTOR = {"kv_connector": "MooncakeConnector"}  # one that needs nothing of this environment


@pytest.fixture(autouse=True)
def nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "find_spec", lambda name: object() if name == "nixl" else None)


@pytest.mark.parametrize(("role", "kv_role"), [(Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer")])
def test_a_role_brings_nixl_and_its_own_end_of_it(role: Role, kv_role: str) -> None:
    fields = connector_fields(role, None)
    assert (fields["kv_connector"], fields["kv_role"]) == ("NixlConnector", kv_role)


def test_what_the_caller_says_of_the_connector_stays() -> None:
    given = {**CONNECTOR, "kv_role": "kv_both", "kv_connector_extra_config": {"a": 1}}
    assert connector_fields(Role.PREFILL, given) == given


def test_a_decode_engine_computes_what_it_cannot_load() -> None:
    given = {**CONNECTOR, "kv_load_failure_policy": "fail"}
    assert connector_fields(Role.DECODE, given)["kv_load_failure_policy"] == "recompute"
    assert given["kv_load_failure_policy"] == "fail"


def test_a_configuration_object_counts_like_its_fields() -> None:
    @dataclass
    class Config:
        kv_connector: str = "MooncakeConnector"
        kv_role: str | None = None

    assert connector_fields(Role.PREFILL, Config()) == {**CONNECTOR, "kv_role": "kv_producer"}


@pytest.mark.parametrize(
    ("role", "given", "advice"),
    [
        (Role.PREFILL, {"kv_role": "kv_consumer"}, "Write kv_role='kv_producer'"),
        (Role.DECODE, {"kv_role": "kv_producer"}, "Write kv_role='kv_consumer'"),
        (Role.DECODE, "NixlConnector", "must be a mapping or vLLM's KVTransferConfig, got str"),
    ],
)
def test_a_configuration_that_does_not_fit_the_role_is_refused(role: Role, given: Any, advice: str) -> None:
    with pytest.raises(InvalidInputError, match=advice):
        connector_fields(role, given)


def test_host_memory_goes_beside_the_connector_of_the_role() -> None:
    role = connector_fields(Role.DECODE, {"engine_id": "me"})
    fields = side_by_side(role, {"kv_connector": "Ours", "kv_role": "kv_producer", "kv_load_failure_policy": "fail"})
    assert (fields["kv_connector"], fields["kv_role"], fields["engine_id"]) == ("MultiConnector", "kv_consumer", "me")
    assert fields["kv_load_failure_policy"] == "recompute"
    children = [{"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}, {"kv_connector": "Ours", "kv_role": "kv_producer"}]
    assert fields["kv_connector_extra_config"] == {"connectors": children}


def test_without_nixl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"stream2llm-rag\[pd\]"):
        connector_fields(Role.PREFILL, None)
    assert connector_fields(Role.PREFILL, CONNECTOR)["kv_role"] == "kv_producer"


def test_an_engine_refuses_a_role_that_there_is_not() -> None:
    with pytest.raises(InvalidInputError, match="'prefill', 'decode' or None, got 'both'"):
        Stream2LLMEngine("model", role="both")


@pytest.mark.parametrize(("first", "second"), [("decode", "prefill"), (None, "decode"), ("prefill", "prefill")])
def test_a_pair_needs_one_engine_of_each_role(first: str | None, second: str | None) -> None:
    with pytest.raises(InvalidInputError, match="engine has role="):
        DisaggregatedEngine(Stream2LLMEngine("model", role=first), Stream2LLMEngine("model", role=second))


async def test_a_pair_that_is_not_open_says_so() -> None:
    pair = DisaggregatedEngine(Stream2LLMEngine("model", role="prefill"), Stream2LLMEngine("model", role="decode"))
    with pytest.raises(LifecycleError, match="async with DisaggregatedEngine"):
        await pair.open()
    await pair.aclose()


class TestPortsOfTheSideChannel:
    def test_each_engine_gets_free_ones_and_the_environment_is_as_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(PORT_VARIABLE, raising=False)
        with side_channel(2):
            first = int(os.environ[PORT_VARIABLE])
            with socket.socket() as one, socket.socket() as two:
                one.bind(("", first))
                two.bind(("", first + 1))
        assert PORT_VARIABLE not in os.environ

    def test_a_port_that_was_named_counts_while_it_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as taken:
            taken.bind(("", 0))
            named = str(taken.getsockname()[1])
            monkeypatch.setenv(PORT_VARIABLE, named)
            with side_channel(1):
                assert os.environ[PORT_VARIABLE] != named
        with side_channel(1):
            assert os.environ[PORT_VARIABLE] == named
        assert os.environ[PORT_VARIABLE] == named

    def test_more_than_there_are_is_an_error(self) -> None:
        with pytest.raises(EngineStartError, match="70000 consecutive free ports"), side_channel(70000):
            pass
