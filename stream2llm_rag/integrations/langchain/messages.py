"""LangChain's values to ours and back. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import InvalidInputError, UnsupportedError


def to_openai(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them. UnsupportedError for contents other than text."""
    return [_to_openai(message) for message in messages]


def _to_openai(message: BaseMessage) -> dict[str, Any]:
    content = text_of(message)
    match message:
        case SystemMessage():
            return {"role": "system", "content": content}
        case HumanMessage():
            return {"role": "user", "content": content}
        case ToolMessage():
            name = {"name": message.name} if message.name else {}
            return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id, **name}
        case AIMessage():
            calls = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
                for call in message.tool_calls
            ]
            return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
    raise InvalidInputError(
        f"a message of type {message.type!r} has no place in a chat. Use system, human, ai and tool messages."
    )


def text_of(message: BaseMessage) -> str:
    """The text of a message, of all its blocks. UnsupportedError for images, audio and files."""
    if isinstance(message.content, str):
        return message.content
    for block in message.content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind not in ("text", "tool_use", "tool_call", "function_call", "reasoning"):
            raise UnsupportedError(f"only text can be passed to the model, but a block of type {kind!r} came.")
    return str(message.text)


def to_history(messages: Sequence[Any]) -> tuple[str | None, list[dict[str, str]]]:
    """The system prompt among ``messages``, if there is one, and the turns of user and assistant.

    Messages are LangChain's, or mappings with ``role`` and ``content``. InvalidInputError for any others.
    """
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for message in messages:
        match message:
            case SystemMessage():
                system.append(text_of(message))
            case HumanMessage():
                turns.append({"role": "user", "content": text_of(message)})
            case AIMessage():
                turns.append({"role": "assistant", "content": text_of(message)})
            case {"role": str(role), "content": str(content)}:
                turns.append({"role": role, "content": content})
            case _:
                raise InvalidInputError(f"history holds system, human and ai messages, but {message!r} came.")
    return "\n\n".join(system) or None, turns


def usage(num_input_tokens: int, num_output_tokens: int) -> UsageMetadata:
    """Token counts as LangChain has them."""
    return UsageMetadata(
        input_tokens=num_input_tokens, output_tokens=num_output_tokens, total_tokens=num_input_tokens + num_output_tokens
    )


def from_langchain(document: LangChainDocument) -> Document:
    """A document of ours. Its source is the metadata's ``source``, else the document's id, else a digest of its text."""
    metadata = document.metadata
    source = metadata.get("source") or document.id or f"text:{hashlib.sha256(document.page_content.encode()).hexdigest()[:16]}"
    title, score = metadata.get("title"), metadata.get("score", metadata.get("relevance_score"))
    return Document(
        document.page_content,
        str(source),
        title=None if title is None else str(title),
        score=float(score) if isinstance(score, int | float) else None,
        metadata={**metadata, **({"id": document.id} if document.id else {})},
    )


def to_langchain(document: Document) -> LangChainDocument:
    """A document of LangChain's, with ``source``, ``title`` and ``score`` in its metadata."""
    known: Mapping[str, Any] = {"title": document.title, "score": document.score}
    found = {key: value for key, value in known.items() if value is not None}
    metadata = {key: value for key, value in document.metadata.items() if key != "id"}
    id_ = document.metadata.get("id")
    return LangChainDocument(
        page_content=document.text,
        metadata={**metadata, "source": document.source, **found},
        id=None if id_ is None else str(id_),
    )
