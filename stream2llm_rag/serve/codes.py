"""Errors on the wire: a code for each that a client can act on, and back. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm_rag.errors import (
    CapacityError,
    EngineDied,
    EngineError,
    EngineUnreachable,
    InvalidInputError,
    LifecycleError,
    PromptTooLongError,
    Stream2LLMError,
    UnsupportedError,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What becomes of a stream: ``error`` is raised at the client, ``close`` is the WebSocket's close code (RFC 6455, 7.4)."""

    error: type[Stream2LLMError]
    close: int


_POLICY, _TOO_BIG, _INTERNAL, _RESTART, _TRY_LATER = 1008, 1009, 1011, 1012, 1013

REFUSALS = {
    "bad_message": Refusal(InvalidInputError, _POLICY),
    "out_of_order": Refusal(LifecycleError, _POLICY),
    "message_too_large": Refusal(InvalidInputError, _TOO_BIG),
    "invalid_input": Refusal(InvalidInputError, _POLICY),
    "prompt_too_long": Refusal(PromptTooLongError, _POLICY),
    "unsupported": Refusal(UnsupportedError, _POLICY),
    "capacity": Refusal(CapacityError, _TRY_LATER),
    "idle": Refusal(EngineUnreachable, _POLICY),
    "slow_reader": Refusal(EngineUnreachable, _POLICY),
    "engine_died": Refusal(EngineDied, _RESTART),
    "internal": Refusal(EngineError, _INTERNAL),
}
"""By code. What each means is in docs/serve.md."""

_CODES: dict[type[Stream2LLMError], str] = {
    PromptTooLongError: "prompt_too_long",
    InvalidInputError: "invalid_input",
    LifecycleError: "out_of_order",
    CapacityError: "capacity",
    UnsupportedError: "unsupported",
    EngineDied: "engine_died",
}


class RefusedError(Exception):
    """A stream is refused or dropped, for the reason that ``code`` names. Stays inside the server."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def code_of(error: Stream2LLMError) -> str:
    """The code of an error, by its class or the nearest base that has one."""
    return next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), "internal")


def error_of(code: str, message: str) -> Stream2LLMError:
    """The error that a client raises; EngineError for a code that it does not know."""
    return REFUSALS.get(code, REFUSALS["internal"]).error(message)
