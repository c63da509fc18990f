"""A whole chat as token ids, with tools where the model's template knows them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from stream2llm_rag.errors import InvalidInputError, UnsupportedError
from stream2llm_rag.prompt.encoding import TextEncoder, Tokenizer
from stream2llm_rag.prompt.markers import WELL_KNOWN_MARKERS
from stream2llm_rag.prompt.rendering import Rendering, apply_template, render_plain, split_rendering
from stream2llm_rag.prompt.sanitize import Sanitizer, strip_invisible


class ChatEncoder:
    """Encodes chats for one model. Threads may share it; making it copies the tokenizer, up to a second for a large one.

    Contents of messages are data: no special token comes out of them. So are the names and arguments of tool calls, which the
    template writes as it likes: there such markers are defused. The chat template is ``chat_template``, else the tokenizer's
    own, else a plain ``User:`` / ``Assistant:`` layout.
    """

    def __init__(self, tokenizer: Tokenizer, *, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._is_chat = chat_template is not None or tokenizer.chat_template is not None
        self._encoder = TextEncoder(tokenizer)
        self._sanitizer = Sanitizer({*WELL_KNOWN_MARKERS, *self._encoder.control_tokens})

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Return the ids of ``messages``, in OpenAI's format with contents of text, up to where the answer begins.

        Arguments of tool calls are mappings; ``tools`` are in OpenAI's format too. Raises
        :class:`~stream2llm_rag.errors.InvalidInputError` for messages that the template refuses, and
        :class:`~stream2llm_rag.errors.UnsupportedError` for tools where the template does not show them to the model.
        """
        if not messages:
            raise InvalidInputError("a chat needs at least one message, but none came.")
        rendering, contents = self._render(messages, tools)
        ids = [] if self._is_chat else list(self._encoder.bos_ids)
        ids += self._encoder.encode_template(rendering.literals[0])
        for slot, literal in zip(rendering.slots, rendering.literals[1:], strict=True):
            ids += self._encoder.encode_data(contents[slot])
            ids += self._encoder.encode_template(literal)
        return ids

    def encode_data(self, text: str) -> list[int]:
        """Return the ids of a text alone, as :meth:`encode` would have them of a message's contents."""
        return self._encoder.encode_data(strip_invisible(text))

    def encode_formatted(self, prompt: str) -> list[int]:
        """Return the ids of a prompt that somebody has formatted for the model: special tokens in it are special."""
        return self._encoder.encode_template(prompt)

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> tuple[Rendering, list[str]]:
        """The chat with slots for its contents, and these. Empty contents have none: templates leave them out at will."""
        if not self._is_chat:
            return self._render_plain(messages, tools)
        filled = [message for message in messages if message.get("content")]
        words = [f"slot{secrets.token_hex(8)}x{index}x" for index in range(len(filled))]
        left = iter(words)
        shown = [self._shown(message, next(left) if message.get("content") else "") for message in messages]
        contents = [strip_invisible(str(message["content"])) for message in filled]
        rendered = self._apply(shown, tools)
        if not words:
            return Rendering((rendered,), ()), contents
        return split_rendering(rendered, words), contents

    def _apply(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        plain = {} if not tools else {"tools": [dict(tool) for tool in tools]}
        rendered = apply_template(self._tokenizer, messages, self._chat_template, **plain)
        if tools and rendered == apply_template(self._tokenizer, messages, self._chat_template):
            raise UnsupportedError(
                "the model's chat template does not show tools to it. Use a model whose template does, or pass chat_template=."
            )
        return rendered

    def _render_plain(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[Rendering, list[str]]:
        roles = [str(message["role"]) for message in messages]
        if tools or not {*roles} <= {"system", "user", "assistant"}:
            raise UnsupportedError("the model has no chat template, which tools need. Pass chat_template=.")
        contents = [strip_invisible(str(message.get("content") or "")) for message in messages]
        return render_plain(roles), contents

    def _shown(self, message: Mapping[str, Any], content: str) -> dict[str, Any]:
        """What the template sees of a message: its role as it is, ``content`` in place of its own, all else defused."""
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        return {"role": message["role"], "content": content, **self._without_markers(rest)}

    def _without_markers(self, value: Any) -> Any:
        """Defuse every string in ``value``, the names of its members too."""
        if isinstance(value, str):
            return self._sanitizer.sanitize(value)
        if isinstance(value, Mapping):
            return {self._without_markers(key): self._without_markers(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._without_markers(item) for item in value]
        return value
