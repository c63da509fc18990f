"""Text to token ids: one way for the template, which speaks to the model, and one for data, which never may."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from stream2llm_rag.prompt.markers import is_tag

_Encode: TypeAlias = Callable[[str], list[int]]


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer, as vLLM hands one out.

    Of a fast one its ``backend_tokenizer`` is copied; ``added_tokens_decoder`` and ``bos_token_id`` are used where they exist.
    """

    @property
    def chat_template(self) -> Any:
        """The Jinja text, templates by name, or None."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """Ids of the special tokens that have a name."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """Return the tokens beside the trained vocabulary, special or not."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of ``text``."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        chat_template: str | None,
        tokenize: bool,
        add_generation_prompt: bool,
        **variables: Any,
    ) -> Any:
        """Render ``conversation`` as text."""


class TextEncoder:
    """Encodes on copies of its own of a fast tokenizer, so that threads and other users of the tokenizer never meet.

    The copies cost about as much time and memory as loading the tokenizer: make one per tokenizer, not per question.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode_template, self._encode_data = _encoders(tokenizer)
        added = tokenizer.get_added_vocab()
        special_ids = set(tokenizer.all_special_ids) | _flagged_special(tokenizer)
        control = {token: id_ for token, id_ in added.items() if id_ in special_ids or is_tag(token)}
        self.control_tokens = frozenset(control)
        """The added tokens that steer a model: special ones, and bracketed names; not runs of spaces, not added words."""
        # Some models pad with a character of ordinary text, such as "!". It steers nothing, and dropping it would lose text.
        characters = {id_ for token, id_ in added.items() if len(token) == 1}
        self._control_ids = (special_ids | set(control.values())) - characters
        self.bos_ids = _bos_ids(tokenizer)
        """What the tokenizer puts before a plain text: the id of its beginning-of-sequence token, or nothing."""

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of text that we or the chat template wrote: special tokens in it are special."""
        return self._encode_template(text)

    def encode_data(self, text: str) -> list[int]:
        """Return the ids of text from outside. None of them belongs to a control token, whatever ``text`` holds.

        Special tokens are read as ordinary characters. Where the tokenizer yields a control token all the same (the trained
        vocabulary may hold its text, and slow tokenizers always parse them), its id is dropped.
        """
        return [id_ for id_ in self._encode_data(text) if id_ not in self._control_ids]


def _encoders(tokenizer: Tokenizer) -> tuple[_Encode, _Encode]:
    backend = getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "_tokenizer", None)
    if not hasattr(backend, "encode_special_tokens"):
        return (_slow_encoder(tokenizer),) * 2
    return _backend_encoder(backend, specials_are_text=False), _backend_encoder(backend, specials_are_text=True)


def _slow_encoder(tokenizer: Tokenizer) -> _Encode:
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


def _backend_encoder(backend: Any, *, specials_are_text: bool) -> _Encode:
    own = copy.deepcopy(backend)
    # Whoever used the shared tokenizer last may have left these set on it.
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = specials_are_text

    def encode(text: str) -> list[int]:
        ids: list[int] = own.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _flagged_special(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of added tokens marked special, named (end of sequence, ...) or not."""
    return {id_ for id_, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}


def _bos_ids(tokenizer: Tokenizer) -> list[int]:
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and bos in tokenizer.encode("", add_special_tokens=True)[:1] else []
