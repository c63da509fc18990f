"""The operations that travel from a session to the scheduler, encoded and validated in one place.

An operation rides in ``SamplingParams.extra_args`` of an ordinary engine-core request; requests of one id form one stream. As
users of vLLM's HTTP API can set ``extra_args`` themselves (``vllm_xargs``), an operation counts only with the secret that the
engine drew when it started.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

EXTRA_ARGS_KEY = "stream2llm"


class OpKind(StrEnum):
    """What an operation does to the stream."""

    APPEND = "append"
    """The request's tokens go behind the prompt."""
    UPDATE = "update"
    """The request's tokens are the new prompt."""
    FINISH = "finish"
    """The request's tokens are the whole final prompt; it is answered with the request's sampling parameters."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. ``opens`` marks the first of its stream: a later one for an id that is gone must not open it again."""

    kind: OpKind
    opens: bool = False
    num_remaining: int | None = None


class RefusedOpError(ValueError):
    """An operation that is malformed or carries no valid secret. Never leaves the engine core."""


def encode(op: Op, secret: str) -> dict[str, Any]:
    """``extra_args`` that carry ``op``."""
    fields = {"secret": secret, "op": str(op.kind), "opens": op.opens, "num_remaining": op.num_remaining}
    return {EXTRA_ARGS_KEY: fields}


def decode(extra_args: Mapping[str, Any] | None, secret: str) -> Op | None:
    """The operation that ``extra_args`` carry; None when they carry none.

    Raises :class:`RefusedOpError` for anything under our key that this library did not encode with ``secret``.
    """
    if not extra_args or EXTRA_ARGS_KEY not in extra_args:
        return None
    fields = extra_args[EXTRA_ARGS_KEY]
    if not isinstance(fields, Mapping):
        raise RefusedOpError("not a mapping")
    given = fields.get("secret")
    if not secret or not isinstance(given, str) or not hmac.compare_digest(given.encode(errors="replace"), secret.encode()):
        raise RefusedOpError("wrong secret")
    opens, num_remaining = fields.get("opens"), fields.get("num_remaining")
    if not isinstance(opens, bool):
        raise RefusedOpError("opens is not a bool")
    if num_remaining is not None and (isinstance(num_remaining, bool) or not isinstance(num_remaining, int)):
        raise RefusedOpError("num_remaining is not an int")
    try:
        kind = OpKind(str(fields.get("op")))
    except ValueError as error:
        raise RefusedOpError("unknown op") from error
    return Op(kind, opens, num_remaining)
