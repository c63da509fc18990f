"""Tool calls in what a model writes, read by vLLM's own parser for that model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.errors import InvalidInputError, MissingExtraError


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of call number ``index``: its ``name`` and ``call_id`` come once, ``arguments`` is a piece of their JSON."""

    index: int
    call_id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """What a piece of output says: text for the reader, and pieces of tool calls."""

    text: str
    tool_calls: tuple[ToolCallDelta, ...] = ()


class ToolCallReader:
    """Reads one answer, piece by piece. ``name`` is that of one of vLLM's tool parsers, such as ``hermes``; ``tools`` are in
    OpenAI's format.

    The answer has to come with ``skip_special_tokens=False``, as many models mark a call by special tokens. Raises
    :class:`InvalidInputError` for a parser that vLLM does not have or that is another model's, and for tools in another format.
    Whether vLLM's parsers are as they are used here is checked when an engine starts (:mod:`stream2llm_rag.engine.surface`).
    """

    def __init__(self, name: str, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        try:
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
            from vllm.tool_parsers import ToolParserManager
        except ImportError as error:
            if importlib.util.find_spec("vllm") is None:
                raise MissingExtraError("vLLM, which reads tool calls,", "vllm") from error
            raise
        try:
            parser = ToolParserManager.get_tool_parser(name)
        except KeyError as error:
            raise InvalidInputError(f"vLLM has no tool parser {name!r}: {error}") from error
        try:
            declared = [ChatCompletionToolsParam.model_validate(dict(tool)) for tool in tools]
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"tools must be declared in OpenAI's format: {error}") from error
        try:
            self._parser = parser(tokenizer, declared)
        except Exception as error:  # each parser looks for the tokens of its model, and raises what it likes
            raise InvalidInputError(
                f"vLLM's tool parser {name!r} does not go with this model: {error} Name the one that was made for it."
            ) from error
        self._request = ChatCompletionRequest(model="", messages=[], tools=declared, tool_choice="auto")
        self._text = ""
        self._token_ids: list[int] = []

    def feed(self, delta: OutputDelta) -> ParsedDelta:
        """What ``delta`` adds."""
        before, ids_before = self._text, list(self._token_ids)
        self._text += delta.text
        self._token_ids += delta.token_ids
        message = self._parser.extract_tool_calls_streaming(
            before, self._text, delta.text, ids_before, self._token_ids, list(delta.token_ids), self._request
        )
        if message is None:
            return ParsedDelta("")
        calls = tuple(
            ToolCallDelta(
                call.index,
                call.id,
                None if call.function is None else call.function.name,
                "" if call.function is None else call.function.arguments or "",
            )
            for call in message.tool_calls or ()
        )
        return ParsedDelta(message.content or "", calls)
