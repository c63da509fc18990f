"""The arguments of ``stream2llm serve``: vLLM's own, read by vLLM's own parser, and those of streams."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.serve.limits import Limits

_DEFAULTS = Limits()
_OPTIONS: tuple[tuple[str, type, Any, str], ...] = (
    ("--stream-policy", str, DEFAULT_POLICY, "The scheduling policy."),
    ("--host-kv-gib", float, 0.0, "GiB of host memory, for each engine core, that keep KV which others took the place of."),
    (
        "--preempt",
        str,
        str(Preemption.AUTO),
        "When KV is kept there: 'auto' where that is cheaper than to compute it again, 'swap' always, 'recompute' never.",
    ),
    ("--max-streams", int, 1024, "Streams open at once."),
    (
        "--max-streams-per-client",
        int,
        _DEFAULTS.max_streams_per_client,
        "Of them, those of one API key, or without keys of one address.",
    ),
    ("--stream-max-message-bytes", int, _DEFAULTS.max_message_bytes, "The longest message that a client may send."),
    (
        "--stream-max-context-tokens",
        int,
        None,
        "The length that the prompt of a stream stays below; without it what the model can take.",
    ),
    (
        "--stream-heartbeat-timeout-s",
        float,
        _DEFAULTS.heartbeat_timeout_s,
        "Seconds without any message after which a client is dropped.",
    ),
    (
        "--stream-idle-timeout-s",
        float,
        _DEFAULTS.idle_timeout_s,
        "Seconds without context or question after which a stream is dropped.",
    ),
    (
        "--stream-send-timeout-s",
        float,
        _DEFAULTS.send_timeout_s,
        "Seconds for which a client may leave its answer unread.",
    ),
)
_CONNECTORS = ("kv_transfer_config", "kv_offloading_size")
_WITHOUT_PLACE = ("headless", "grpc", "data_parallel_external_lb", "data_parallel_hybrid_lb")


def parse(arguments: Sequence[str]) -> Namespace:
    """Read what follows ``stream2llm serve``. Ends the process as argparse does where it is wrong."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    root = FlexibleArgumentParser(prog="stream2llm")
    commands = root.add_subparsers(dest="subparser", required=True)
    description = "vLLM's OpenAI-compatible server, on a scheduler that takes context in while it is found."
    parser = make_arg_parser(commands.add_parser("serve", description=description, usage="stream2llm serve MODEL [options]"))
    parser.epilog = "--help=Stream2LLM shows the options of streams, --help=all every option."
    group = parser.add_argument_group("Stream2LLM", "Streaming context: its scheduling, and the limits of clients.")
    for name, kind, default, text in _OPTIONS:
        group.add_argument(name, type=kind, default=default, help=text)
    args: Namespace = root.parse_args(["serve", *arguments])
    args.model = args.model_tag or args.model
    _refuse_several_processes(args)
    _refuse_connectors(args)
    return args


def limits_of(args: Namespace) -> Limits:
    """The limits that the arguments name."""
    return Limits(
        max_message_bytes=args.stream_max_message_bytes,
        max_context_tokens=args.stream_max_context_tokens,
        max_streams_per_client=args.max_streams_per_client,
        heartbeat_timeout_s=args.stream_heartbeat_timeout_s,
        idle_timeout_s=args.stream_idle_timeout_s,
        send_timeout_s=args.stream_send_timeout_s,
    )


def _refuse_several_processes(args: Namespace) -> None:
    """Of several front ends, vLLM sends the scheduler's records to any one; a stream needs its own at its own."""
    if (args.api_server_count or 1) != 1:
        raise InvalidInputError(
            f"--api-server-count={args.api_server_count}, but streams are served by one process. Leave it out; data "
            "parallelism passes through one process, and other servers work beside it."
        )
    for option in _WITHOUT_PLACE:
        if getattr(args, option, False):
            raise InvalidInputError(f"--{option.replace('_', '-')} has no place for streams. Leave it out.")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise InvalidInputError("VLLM_USE_RUST_FRONTEND is set, but vLLM's Rust front end takes in no routes. Unset it.")


def _refuse_connectors(args: Namespace) -> None:
    """A connector needs to know its engine's part (``role=``), and a server's engine is a whole one."""
    for option in _CONNECTORS:
        if getattr(args, option) is not None:
            raise InvalidInputError(
                f"--{option.replace('_', '-')} brings a KV connector, but the only one of a served engine is that of "
                "--host-kv-gib. Leave it out; --host-kv-gib=N keeps KV in N GiB of host memory."
            )
