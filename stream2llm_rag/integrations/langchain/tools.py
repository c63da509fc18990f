"""What tools and schemas mean for sampling, and how the answer that they shape is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from langchain_core.messages.tool import ToolCallChunk
from langchain_core.messages.tool import tool_call_chunk as make_chunk

from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.engine.tools import ToolCallReader
from stream2llm_rag.errors import InvalidInputError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Piece:
    """What the reader of an answer gets of one output delta."""

    text: str
    tool_call_chunks: tuple[ToolCallChunk, ...] = ()


class AnswerReader(Protocol):
    """Turns output deltas into pieces."""

    def feed(self, delta: OutputDelta) -> Piece:
        """What ``delta`` adds."""

    def end(self) -> Piece:
        """What is left when the answer has ended."""


class TextReader:
    """Everything is text."""

    def feed(self, delta: OutputDelta) -> Piece:
        """The delta's text."""
        return Piece(delta.text)

    def end(self) -> Piece:
        """Nothing."""
        return Piece("")


class ParsingReader:
    """What vLLM's parser for the model says."""

    def __init__(self, reader: ToolCallReader) -> None:
        self._reader = reader

    def feed(self, delta: OutputDelta) -> Piece:
        """Text, and pieces of tool calls as they are written."""
        parsed = self._reader.feed(delta)
        chunks = tuple(
            make_chunk(name=call.name, args=call.arguments, id=call.call_id, index=call.index) for call in parsed.tool_calls
        )
        return Piece(parsed.text, chunks)

    def end(self) -> Piece:
        """Nothing."""
        return Piece("")


class ForcedReader:
    """An answer that :func:`forced_calls` shaped: nothing but calls, given out when the last is complete."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, delta: OutputDelta) -> Piece:
        """Nothing yet."""
        self._text += delta.text
        return Piece("")

    def end(self) -> Piece:
        """The calls; the plain text where ``max_tokens`` cut them short."""
        try:
            calls = json.loads(self._text)
        except json.JSONDecodeError:
            return Piece(self._text)
        chunks = (
            make_chunk(
                name=call["name"], args=json.dumps(call["arguments"], ensure_ascii=False), id=f"call_{uuid4().hex}", index=index
            )
            for index, call in enumerate(calls)
        )
        return Piece("", tuple(chunks))


def forced_calls(tools: Sequence[Mapping[str, Any]], tool_choice: str, *, parallel: bool) -> dict[str, Any]:
    """The schema of an answer that must call: any tool (``any``), or the one of that name."""
    functions = [tool["function"] for tool in tools]
    chosen = [function for function in functions if tool_choice in ("any", function["name"])]
    if not chosen:
        names = ", ".join(function["name"] for function in functions)
        raise InvalidInputError(f"tool_choice is {tool_choice!r}; write 'auto', 'none', 'any', or one of: {names}.")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "arguments": function.get("parameters") or {"type": "object", "properties": {}},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in chosen
    ]
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    limit = {} if parallel and tool_choice == "any" else {"maxItems": 1}
    return {"type": "array", "minItems": 1, "items": one, **limit}


def read_tool_choice(choice: str | bool | Mapping[str, Any] | None) -> str:
    """``auto``, ``none``, ``any`` or a tool's name, of the spellings that LangChain's models share."""
    match choice:
        case None | False | "auto":
            return "auto"
        case True | "any" | "required":
            return "any"
        case str():
            return choice
        case {"function": {"name": str(name)}}:
            return name
    raise InvalidInputError(f"tool_choice is {choice!r}; write 'auto', 'none', 'any', or the name of a tool.")


@dataclass(frozen=True, slots=True)
class Shape:
    """What one call asks of its answer: the tools that the model sees, fields for sampling, and how to read what comes."""

    tools: tuple[Mapping[str, Any], ...]
    sampling: Mapping[str, Any]
    reader: AnswerReader


def shape_answer(
    *,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str,
    parallel_tool_calls: bool,
    response_format: Mapping[str, Any] | None,
    tool_parser: str | None,
    tokenizer: Any,
) -> Shape:
    """Decide how tools and a response format are met.

    UnsupportedError where the model is free to call a tool and no parser is named that could tell.
    """
    if tools and response_format is not None:
        raise InvalidInputError("an answer either may call tools or follows a response_format. Pass one of them.")
    if response_format is not None:
        return Shape((), {"structured_outputs": _constraint(response_format)}, TextReader())
    if not tools or tool_choice == "none":
        return Shape((), {}, TextReader())
    if tool_choice != "auto":
        schema = forced_calls(tools, tool_choice, parallel=parallel_tool_calls)
        return Shape(tuple(tools), {"structured_outputs": {"json": schema}}, ForcedReader())
    if tool_parser is None:
        raise UnsupportedError(
            "to let the model choose whether it calls a tool, name vLLM's parser for it, such as tool_parser='hermes'; "
            "or force a call with tool_choice='any'."
        )
    reader = ParsingReader(ToolCallReader(tool_parser, tokenizer, tools))
    return Shape(tuple(tools), {"skip_special_tokens": False}, reader)


def _constraint(response_format: Mapping[str, Any]) -> dict[str, Any]:
    match response_format:
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return {"json": dict(schema)}
    raise InvalidInputError(
        f"response_format is {dict(response_format)!r}; write {{'type': 'json_object'}}, or {{'type': 'json_schema', "
        "'json_schema': {'schema': ...}}."
    )
