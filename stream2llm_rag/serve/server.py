"""``stream2llm serve``: vLLM's OpenAI server on an engine of ours, with one more route."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.surface import installed_source
from stream2llm_rag.errors import EngineStartError, MissingExtraError, UnsupportedError
from stream2llm_rag.serve.arguments import limits_of, parse
from stream2llm_rag.serve.limits import Limits
from stream2llm_rag.serve.messages import Model
from stream2llm_rag.serve.plugin import StreamPlugin, serving
from stream2llm_rag.serve.service import Service
from stream2llm_rag.serve.tokenizers import pack

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

# What of vLLM's server is used, by module. It is no documented interface, and versions of vLLM move it about.
SURFACE = {
    "vllm.entrypoints.launchers.api_server.entry": "build_and_serve",
    "vllm.entrypoints.launchers.cli_args": "make_arg_parser validate_parsed_serve_args",
    "vllm.entrypoints.launchers.launcher": "setup_server",
    "vllm.entrypoints.serve.utils.api_utils": "cli_env_setup",
    "vllm.plugins.endpoint_plugins.interface": "EndpointPlugin",
    "vllm.usage.usage_lib": "UsageContext",
    "vllm.utils.argparse_utils": "FlexibleArgumentParser",
}
_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
_ROUTES = "vllm.endpoint_plugins"
_UVICORN_MAX_SIZE = 16 * 2**20  # uvicorn's own limit on a WebSocket's message, which vLLM's other WebSockets keep


def main(arguments: Sequence[str]) -> None:
    """Serve until a signal ends it. ``arguments`` are those of ``vllm serve``, and ours."""
    os.environ["VLLM_PLUGINS"] = plugins_to_load(os.environ.get("VLLM_PLUGINS"))
    check_server_surface()
    import uvloop
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    args = parse(arguments)
    validate_parsed_serve_args(args)
    uvloop.run(serve(args))


def plugins_to_load(chosen: str | None) -> str:
    """What ``VLLM_PLUGINS`` has to be: vLLM adds routes only of plugins that it names, and then loads no others of any kind.

    What the user chose stays, and without a choice all that are installed.
    """
    names = chosen.split(",") if chosen is not None else [e.name for group in _PLUGIN_GROUPS for e in entry_points(group=group)]
    return ",".join(dict.fromkeys([*filter(None, names), StreamPlugin.name]))


def check_server_surface() -> None:
    """Raise where a server could not start, or not have the route.

    :class:`MissingExtraError` without vLLM, :class:`UnsupportedError` where its server lacks what is used here, and
    :class:`EngineStartError` where vLLM could not find our plugin.
    """
    try:
        source = installed_source()
    except UnsupportedError as error:
        raise MissingExtraError("vLLM", "vllm") from error
    if StreamPlugin.name not in entry_points(group=_ROUTES).names:
        raise EngineStartError(
            "vLLM would not find the route for streams: this package is imported without being installed. make setup does that."
        )
    gone = [f"{module}.{name}" for module, names in SURFACE.items() for name in names.split() if not source.has(module, name)]
    if gone:
        raise UnsupportedError(f"the server of this vLLM lacks {', '.join(gone)}. Serve with vLLM 0.32, on which it was made.")


class ServedEngine(Stream2LLMEngine):
    """The engine of a server: what ``vllm serve`` would start with the same arguments, but for the scheduler."""

    @classmethod
    def of(cls, args: Namespace) -> ServedEngine:
        """The engine that the arguments describe, not open yet."""
        from vllm.engine.arg_utils import AsyncEngineArgs

        given = _given(AsyncEngineArgs.from_cli_args(args))
        return cls(
            given.pop("model"),
            policy=args.stream_policy,
            max_sessions=args.max_streams,
            host_kv_gib=args.host_kv_gib,
            preempt=args.preempt,
            **given,
        )

    def _configure(self, args: AsyncEngineArgs) -> VllmConfig:
        from vllm.usage.usage_lib import UsageContext

        return args.create_engine_config(UsageContext.OPENAI_API_SERVER)  # batch sizes follow from it


def _given(args: AsyncEngineArgs) -> dict[str, Any]:
    """What differs from vLLM's defaults; and whether statistics are kept, as a server's default is not the library's."""
    default = type(args)(model=args.model)
    names = [field.name for field in fields(args)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) != getattr(default, name)}
    return {**given, "model": args.model, "disable_log_stats": args.disable_log_stats}


async def serve(args: Namespace) -> None:
    """Bind, start the engine, serve; ends in order after SIGTERM or SIGINT."""
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.launchers.launcher import setup_server

    limits = limits_of(args)
    engine = ServedEngine.of(args)
    try:
        address, listening = setup_server(args, reuse_port=False)
    except OSError as error:
        raise EngineStartError(
            f"cannot listen on port {args.port} of {args.host or 'all addresses'}: {error.strerror}."
        ) from error
    with listening:
        async with engine:
            with serving(await _service(engine, args, limits)):
                ended = await build_and_serve(engine.llm, address, listening, args, **_uvicorn_options(limits))
        await ended


async def _service(engine: ServedEngine, args: Namespace, limits: Limits) -> Service:
    return await anyio.to_thread.run_sync(_make_service, engine, args, limits)


def _make_service(engine: ServedEngine, args: Namespace, limits: Limits) -> Service:
    tokenizer = engine.tokenizer
    max_model_len = min(engine.max_model_len, limits.max_context_tokens or engine.max_model_len)
    served = args.served_model_name
    model = Model(
        name=served[0] if served else args.model,
        max_model_len=max_model_len,
        vocab_size=engine.llm.model_config.get_vocab_size(),
        tokenizer=pack(tokenizer, _chat_template(args.chat_template)),
    )
    return Service(engine, model, tokenizer, limits)


def _chat_template(chosen: str | None) -> str | None:
    """The text of ``--chat-template``, which may name a file."""
    try:
        from vllm.renderers.chat_utils import load_chat_template
    except ImportError:  # where vLLM 0.31 has it
        from vllm.entrypoints.chat_utils import load_chat_template
    text: str | None = load_chat_template(chosen)
    return text


def _uvicorn_options(limits: Limits) -> Mapping[str, int]:
    return {"ws_max_size": max(_UVICORN_MAX_SIZE, limits.max_message_bytes)}
