"""The command: its arguments, what it refuses before an engine starts, and the route that is not there elsewhere."""

from __future__ import annotations

import gc
import os
import socket
from argparse import Namespace
from dataclasses import fields
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from stream2llm_rag.cli.app import app
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.swap.connector import SwapConnector
from stream2llm_rag.errors import EngineStartError, InvalidInputError, MissingExtraError, UnsupportedError
from stream2llm_rag.serve import server
from stream2llm_rag.serve.arguments import limits_of, parse
from stream2llm_rag.serve.limits import Limits
from stream2llm_rag.serve.plugin import StreamPlugin, has_api_key
from stream2llm_rag.serve.server import ServedEngine, check_server_surface, plugins_to_load


def test_without_options_the_limits_are_those_of_the_library() -> None:
    assert limits_of(parse(["model"])) == Limits()


def test_each_limit_has_its_option() -> None:
    options = {
        "--stream-max-message-bytes": "1",
        "--stream-max-context-tokens": "2",
        "--max-streams-per-client": "3",
        "--stream-heartbeat-timeout-s": "4",
        "--stream-idle-timeout-s": "5",
        "--stream-send-timeout-s": "6.5",
    }
    limits = limits_of(parse(["model", *(f"{name}={value}" for name, value in options.items())]))
    assert limits == Limits(1, 2, 3, 4.0, 5.0, 6.5)
    assert len(options) == len(fields(Limits))


def test_vllms_options_reach_the_engine_as_they_are(model_path: Path) -> None:
    args = parse(
        [str(model_path), "--max-model-len", "123", "--tensor-parallel-size=2", "--stream-policy=fcfs", "--max-streams=7"]
    )
    engine = ServedEngine.of(args)
    assert engine._model == str(model_path)
    expected = {"max_model_len": 123, "tensor_parallel_size": 2, "disable_log_stats": False}
    assert {name: engine._engine_args[name] for name in expected} == expected
    assert "max_num_seqs" not in engine._engine_args  # what nobody chose is left to vLLM, and to the engine
    assert engine._settings.policy == "fcfs"
    assert engine._max_sessions == 7


def test_its_engine_has_the_host_memory_that_was_asked_for(model_path: Path) -> None:
    engine = ServedEngine.of(parse([str(model_path), "--host-kv-gib=2.5", "--preempt=swap"]))
    connector = engine._connector()
    assert connector.kv_connector == SwapConnector.__name__
    assert connector.kv_connector_extra_config == {"host_kv_gib": 2.5}
    assert engine._settings.preempt == "swap"


def test_without_options_it_has_none_as_in_the_library(model_path: Path) -> None:
    served, own = ServedEngine.of(parse([str(model_path)])), Stream2LLMEngine(model_path)
    assert served._host_kv_gib == own._host_kv_gib == 0
    assert served._settings.preempt == own._settings.preempt


@pytest.mark.parametrize("others", [[], ["--host-kv-gib=1"]])
@pytest.mark.parametrize(
    "option", ['--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}', "--kv-offloading-size=1"]
)
def test_a_connector_of_the_users_is_refused_by_name(option: str, others: list[str]) -> None:
    with pytest.raises(InvalidInputError, match=f"{option.split('=')[0]} brings a KV connector"):
        parse(["model", option, *others])


def test_its_engine_has_the_batch_sizes_of_vllms_server(model_path: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine = ServedEngine.of(parse([str(model_path)]))
    args = AsyncEngineArgs(str(model_path))
    expected = AsyncEngineArgs(str(model_path)).create_engine_config(UsageContext.OPENAI_API_SERVER).scheduler_config
    found = engine._configure(args).scheduler_config
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (expected.max_num_batched_tokens, expected.max_num_seqs)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--api-server-count=2", "served by one process"),
        ("--headless", "has no place"),
        ("--grpc", "has no place"),
        ("--data-parallel-external-lb", "has no place"),
    ],
)
def test_what_would_need_several_front_ends_is_refused(option: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        parse(["model", option])


def test_vllms_other_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(InvalidInputError, match="Rust"):
        parse(["model"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--stream-policy=luck", "luck"),
        ("--max-streams=0", "max_sessions"),
        ("--host-kv-gib=-1", "host_kv_gib"),
        ("--preempt=sometimes", "sometimes"),
        ("--stream-idle-timeout-s=0", "idle_timeout_s"),
        ("--scheduler-cls=mine", "scheduler_cls"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_before_anything_starts(
    model_path: Path, option: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "VLLM_PLUGINS", "stream2llm")
    with pytest.raises(InvalidInputError, match=said):
        server.main([str(model_path), option])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # vLLM leaves the socket to the collector
def test_a_port_that_is_taken_is_named(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "VLLM_PLUGINS", "stream2llm")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineStartError, match=f"cannot listen on port {port} of 127.0.0.1"):
            server.main([str(model_path), "--host=127.0.0.1", f"--port={port}"])
    gc.collect()


def test_a_chat_template_of_the_server_is_that_of_its_clients(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0]['content'] }}")
    assert server._chat_template(str(path)) == path.read_text()
    assert server._chat_template(None) is None


def test_the_options_of_streams_have_a_page_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help=Stream2LLM"])
    assert "--max-streams-per-client" in capsys.readouterr().out


def test_the_command_leaves_every_argument_to_vllms_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    seen: list[list[str]] = []
    monkeypatch.setattr(server, "main", seen.append)
    arguments = ["--help=all", "model", "-tp", "2", "--port=1", "--api-key", "a", "b", "--hf-overrides.x", "1"]
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 0, result.output
    assert seen == [arguments]


@pytest.mark.parametrize(("chosen", "found"), [("stream2llm", "stream2llm"), ("mine", "mine,stream2llm"), ("", "stream2llm")])
def test_the_plugins_that_were_chosen_stay(chosen: str, found: str) -> None:
    assert plugins_to_load(chosen) == found


def test_without_a_choice_all_plugins_are_loaded_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class EntryPoint:
        def __init__(self, name: str) -> None:
            self.name = name

    found = {"vllm.general_plugins": [EntryPoint("stream2llm"), EntryPoint("a")], "vllm.platform_plugins": [EntryPoint("b")]}
    monkeypatch.setattr(server, "entry_points", lambda group: found.get(group, []))
    assert plugins_to_load(None) == "stream2llm,a,b"


def test_the_server_of_the_installed_vllm_has_what_is_used() -> None:
    check_server_surface()


def test_a_server_that_lacks_something_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server.SURFACE, "vllm.entrypoints.launchers.launcher", "setup_server set_up_the_server")
    with pytest.raises(UnsupportedError, match=r"vllm\.entrypoints\.launchers\.launcher\.set_up_the_server"):
        check_server_surface()


def test_a_package_that_is_not_installed_is_refused_as_its_route_would_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "entry_points", lambda group: EntryPoints([]))
    with pytest.raises(EngineStartError, match="without being installed"):
        check_server_surface()


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UnsupportedError("no vLLM")

    monkeypatch.setattr(server, "installed_source", missing)
    with pytest.raises(MissingExtraError, match=r"stream2llm-rag\[vllm\]"):
        check_server_surface()


async def test_in_a_server_that_is_not_ours_the_plugin_does_nothing() -> None:
    app, plugin = Starlette(), StreamPlugin()
    plugin.attach_router(app)  # type: ignore[arg-type]
    await plugin.init_state(None, app.state, Namespace(allowed_origins=[], api_key=None))
    assert app.routes == []


def test_it_is_a_plugin_as_vllm_wants_one() -> None:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    plugin: Any = StreamPlugin()
    assert isinstance(plugin, EndpointPlugin)


@pytest.mark.parametrize(
    ("keys", "variable", "has"), [(None, None, False), (["a"], None, True), (None, "a", True), ([], None, False)]
)
def test_a_server_has_keys_where_vllms_has(
    monkeypatch: pytest.MonkeyPatch, keys: list[str] | None, variable: str | None, has: bool
) -> None:
    if variable is None:
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
    else:
        monkeypatch.setenv("VLLM_API_KEY", variable)
    assert has_api_key(Namespace(api_key=keys)) is has
