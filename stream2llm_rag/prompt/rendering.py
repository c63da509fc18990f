"""The chat template as plain pieces: the literal text that it writes, and the slots between them for contents of messages.

The template sees an opaque word in place of every content. So it cannot trim or escape one, and no content can look like
a part of it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.prompt.encoding import Tokenizer

# How a template that knows no parts of contents writes one: the list itself, printed or as JSON.
_LIST_AS_TEXT = ("'text': '", '"text": "')


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the prompt. ``is_data``: it came from outside and is encoded as such."""

    text: str
    is_data: bool


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as a template writes it: ``literals[0]``, message ``slots[0]``, ``literals[1]``, ...

    ``literals`` is one longer than ``slots``; a slot is the index of the message whose content goes there.
    """

    literals: tuple[str, ...]
    slots: tuple[int, ...]

    def cut(self, slot: int) -> tuple[Rendering, Rendering]:
        """Return what stands before ``slot`` and what stands behind it."""
        at = self.slots.index(slot)
        return (
            Rendering(self.literals[: at + 1], self.slots[:at]),
            Rendering(self.literals[at + 1 :], self.slots[at + 1 :]),
        )

    def fill(self, contents: Sequence[Sequence[Span]]) -> list[Span]:
        """Return the spans of the rendering, with ``contents[slot]`` in each slot."""
        spans = [Span(self.literals[0], is_data=False)]
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            spans += [*contents[slot], Span(literal, is_data=False)]
        return spans


Renderer: TypeAlias = Callable[[Sequence[str]], Rendering]
"""Renders a conversation, given by the roles of its messages, up to where the model's answer begins."""


def render_plain(roles: Sequence[str]) -> Rendering:
    """Render for a model without a chat template."""
    headings = {"system": "", "user": "User:\n", "assistant": "Assistant:\n"}
    openings = [headings[role] for role in roles]
    literals = [openings[0], *("\n\n" + opening for opening in openings[1:]), "\n\nAssistant:\n"]
    return Rendering(tuple(literals), tuple(range(len(roles))))


def chat_renderer(tokenizer: Tokenizer, chat_template: str | None) -> Renderer:
    """Return a renderer by ``chat_template``, or by the tokenizer's own where that is None.

    The renderer raises :class:`~stream2llm_rag.errors.InvalidInputError` where the template refuses the roles, or does not
    write each content once.
    """

    def render(roles: Sequence[str]) -> Rendering:
        try:
            return render_as(roles, lambda word: word)
        except InvalidInputError:
            # Templates of models that also take images may want a content as a list of parts.
            with suppress(InvalidInputError):
                rendering = render_as(roles, lambda word: [{"type": "text", "text": word}])
                if not any(literal.endswith(_LIST_AS_TEXT) for literal in rendering.literals):
                    return rendering
            raise

    def render_as(roles: Sequence[str], content: Callable[[str], Any]) -> Rendering:
        # Random, so that no template can hold one by chance; letters and digits, so that escaping leaves them alone.
        words = [f"slot{secrets.token_hex(8)}x{index}x" for index in range(len(roles))]
        messages = [{"role": role, "content": content(word)} for role, word in zip(roles, words, strict=True)]
        return split_rendering(apply_template(tokenizer, messages, chat_template), words)

    return render


def apply_template(tokenizer: Tokenizer, messages: list[dict[str, Any]], chat_template: str | None, **variables: Any) -> str:
    """Return what the template writes for ``messages``; ``variables`` are further ones of the template, such as ``tools``.

    Raises :class:`~stream2llm_rag.errors.InvalidInputError` where it refuses them.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=chat_template, tokenize=False, add_generation_prompt=True, **variables
            )
        )
    except Exception as error:  # a template is a program: it raises what it likes
        roles = ", ".join(message["role"] for message in messages)
        raise InvalidInputError(
            f"the chat template refuses a conversation with the roles {roles}: {error}. Pass a history that it takes (most "
            "want user and assistant in turn, ending with assistant), or another chat_template"
        ) from error


def split_rendering(rendered: str, words: Sequence[str]) -> Rendering:
    """Split a rendering at the words that stand for contents.

    Raises :class:`~stream2llm_rag.errors.InvalidInputError` where one of them is missing or there twice.
    """
    parts = re.split("(" + "|".join(words) + ")", rendered)
    slots = tuple(words.index(word) for word in parts[1::2])
    if sorted(slots) != list(range(len(words))):
        raise InvalidInputError(
            f"the chat template must write the content of each message once; of {len(words)} messages it wrote, in order, "
            f"{list(slots)} (counted from 0), so the place of the documents cannot be found. Pass another chat_template"
        )
    return Rendering(tuple(parts[0::2]), slots)
