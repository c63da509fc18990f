"""Tool calls as vLLM's own parser reads them, on whichever version is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.engine.tools import ToolCallReader
from stream2llm_rag.errors import InvalidInputError

TOOL = {
    "type": "function",
    "function": {"name": "greet", "parameters": {"type": "object", "properties": {"who": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


def test_two_calls_are_read_while_they_are_written(tokenizer: Any) -> None:
    calls = [f'<tool_call>{{"name": "greet", "arguments": {{"who": "{who}"}}}}</tool_call>' for who in ("Ada", "你好")]
    reader = ToolCallReader("hermes", tokenizer, [TOOL])
    texts = ["Let ", "me see.\n", *(piece for call in calls for piece in (call[:20], call[20:45], call[45:]))]
    parsed = [reader.feed(OutputDelta(text, tuple(tokenizer.encode(text, add_special_tokens=False)))) for text in texts]
    assert "".join(delta.text for delta in parsed).strip() == "Let me see."
    pieces = [piece for delta in parsed for piece in delta.tool_calls]
    assert [(piece.index, piece.name) for piece in pieces if piece.name] == [(0, "greet"), (1, "greet")]
    assert len({piece.call_id for piece in pieces if piece.call_id}) == 2
    arguments = ["".join(piece.arguments for piece in pieces if piece.index == index) for index in (0, 1)]
    assert [json.loads(text) for text in arguments] == [{"who": "Ada"}, {"who": "你好"}]
    assert "你好" in arguments[1]


def test_an_unknown_parser_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidInputError, match="no tool parser 'mercury'"):
        ToolCallReader("mercury", tokenizer, [TOOL])


def test_the_parser_of_another_model_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidInputError, match="'deepseek_v3' does not go with this model"):
        ToolCallReader("deepseek_v3", tokenizer, [TOOL])


@pytest.mark.parametrize("tool", [{}, {"type": "function"}, None, 5])
def test_what_declares_no_tool_is_refused(tokenizer: Any, tool: Any) -> None:
    with pytest.raises(InvalidInputError, match="in OpenAI's format"):
        ToolCallReader("hermes", tokenizer, [tool])
