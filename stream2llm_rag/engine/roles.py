"""The two halves of a disaggregated deployment: which engine an engine is, and what its KV connector needs for that.

A *prefill* engine computes prompts and offers their KV, a *decode* engine takes it over and generates. The transfer is vLLM's
own (``vllm/distributed/kv_transfer``); NIXL carries it unless another connector is named.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from stream2llm_rag.errors import EngineStartError, InvalidInputError, MissingExtraError

PORT_VARIABLE = "VLLM_NIXL_SIDE_CHANNEL_PORT"
NIXL = "NixlConnector"
_NUM_TRIES = 50


class Role(StrEnum):
    """What an engine does in a disaggregated deployment."""

    PREFILL = "prefill"
    DECODE = "decode"

    @classmethod
    def named(cls, name: str) -> Role:
        """The role of that name; :class:`InvalidInputError` for any other."""
        try:
            return cls(name)
        except ValueError as error:
            raise InvalidInputError(f"role must be 'prefill', 'decode' or None, got {name!r}.") from error

    @property
    def kv_roles(self) -> tuple[str, str]:
        """vLLM's names for connectors that do what the role needs, the one that does no more first."""
        return ("kv_producer" if self is Role.PREFILL else "kv_consumer", "kv_both")


def connector_fields(role: Role, given: Mapping[str, Any] | Any | None) -> dict[str, Any]:
    """Fields of vLLM's ``KVTransferConfig`` for an engine of ``role``.

    ``given`` are the caller's, as a mapping or as a ``KVTransferConfig``; None stands for NIXL. What is not said follows from
    the role. A decode engine computes again what it cannot load: to fail instead, as is vLLM's default, would end a stream for
    no need. Raises :class:`InvalidInputError` for fields that contradict the role, :class:`MissingExtraError` for NIXL where it
    is not installed.
    """
    fields = _as_mapping(given)
    fields.setdefault("kv_connector", NIXL)
    if fields.get("kv_role") is None:
        fields["kv_role"] = role.kv_roles[0]
    if fields["kv_role"] not in role.kv_roles:
        raise InvalidInputError(
            f"kv_role={fields['kv_role']!r} does not go with role={str(role)!r}. "
            f"Write kv_role={role.kv_roles[0]!r}, or leave it out."
        )
    if role is Role.DECODE:
        fields["kv_load_failure_policy"] = "recompute"
    if fields["kv_connector"] == NIXL and find_spec("nixl") is None and find_spec("rixl") is None:
        raise MissingExtraError("NIXL, which carries KV from one engine to another,", "pd")
    return fields


def side_by_side(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a connector that is both: vLLM's, which asks the first one first. The role is the first one's."""
    whole = ("engine_id", "kv_load_failure_policy")  # they are the engine's, and not one connector's
    connectors = [{name: value for name, value in fields.items() if name not in whole} for fields in (first, second)]
    return {
        "kv_connector": "MultiConnector",
        "kv_role": first["kv_role"],
        "kv_connector_extra_config": {"connectors": connectors},
        **{name: first[name] for name in whole if name in first},
    }


def _as_mapping(given: Mapping[str, Any] | Any | None) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if is_dataclass(given) and not isinstance(given, type):
        return asdict(given)
    raise InvalidInputError(f"kv_transfer_config must be a mapping or vLLM's KVTransferConfig, got {type(given).__name__}.")


@contextmanager
def side_channel(num_cores: int) -> Iterator[None]:
    """Engines started inside listen for NIXL's handshakes at ports of their own, one for each of ``num_cores`` engine cores.

    vLLM takes the first port from the environment, and counts up. Where the environment names one that is free, it counts; the
    second engine of a process finds it taken and gets another. Raises :class:`EngineStartError` when no ports are free.
    """
    before = os.environ.get(PORT_VARIABLE)
    wanted = int(before) if before is not None else 0
    first = wanted if wanted and _are_free(wanted, num_cores) else _free_ports(num_cores)
    os.environ[PORT_VARIABLE] = str(first)
    try:
        yield
    finally:
        if before is None:
            del os.environ[PORT_VARIABLE]
        else:
            os.environ[PORT_VARIABLE] = before


def _free_ports(num_ports: int) -> int:
    """The first of ``num_ports`` consecutive ports that nobody listens at now; another process may still be quicker."""
    for _ in range(_NUM_TRIES):
        with socket.socket() as probe:
            probe.bind(("", 0))
            first: int = probe.getsockname()[1]
        if first + num_ports <= 1 << 16 and _are_free(first, num_ports):
            return first
    raise EngineStartError(
        f"there are no {num_ports} consecutive free ports for NIXL. Set {PORT_VARIABLE} to the first of some."
    )


def _are_free(first: int, num_ports: int) -> bool:
    with ExitStack() as probes:
        for port in range(first, first + num_ports):
            try:
                probes.enter_context(socket.socket()).bind(("", port))
            except (OSError, OverflowError):
                return False
    return True
