"""One question's prompt while its documents come: which documents stand in it, in what order, and as which tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NewType, TypeAlias

from stream2llm_rag.documents import Append, ContextDelta, Document
from stream2llm_rag.errors import InvalidInputError, PromptTooLongError

Order: TypeAlias = Literal["stable", "rank"]
_DocumentKey = NewType("_DocumentKey", tuple[str, str])

MIN_CUT_TOKENS = 64
"""A document is cut to what is left of the budget only where at least this many tokens are left."""


@dataclass(frozen=True, slots=True)
class PlacedDocument:
    """A document that the model sees. ``num_tokens`` counts its header and delimiters too.

    ``truncated``: it is longer than that, and its end was cut off.
    """

    document: Document
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class PromptChange:
    """What a delta means for the tokens that the model has been given.

    ``append``: ``token_ids`` go behind them. ``update``: ``token_ids`` are all of them, prefix and documents.
    """

    kind: Literal["append", "update"]
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class DocumentFormat:
    """How a document is written: ``opening_ids``, its header and text as data by ``encode``, ``closing_ids``."""

    opening_ids: tuple[int, ...]
    encode: Callable[[Document], list[int]]
    closing_ids: tuple[int, ...]

    @property
    def num_frame_tokens(self) -> int:
        """Tokens of a document without header and text."""
        return len(self.opening_ids) + len(self.closing_ids)

    def frame(self, content_ids: Sequence[int], num_tokens: int) -> list[int]:
        """Return a document in ``num_tokens`` tokens: ``content_ids`` are cut at their end, the frame stays whole."""
        return [*self.opening_ids, *content_ids[: num_tokens - self.num_frame_tokens], *self.closing_ids]


class ContextPrompt:
    """The prompt of one question: prefix, documents, suffix.

    Documents are identified by source and text; one that is there already is not added again, but its score is
    taken over. Each is tokenised once, when it first comes into reach of the budget, and has the same tokens wherever it
    stands.

    The budget: ``max_prompt_tokens`` covers prefix, documents and suffix. Documents are taken in order, each cut to
    ``max_document_tokens`` where that is given. The first that does not fit is cut to what is left if that is at least
    ``MIN_CUT_TOKENS``, else left out; all behind it are left out. So what comes later never changes what stands before.

    The order: an append goes behind what is there. A replace either keeps the documents that stay at their places and puts
    new ones behind them (``stable``: the longest common prefix), or follows the retriever (``rank``).

    May be used from any thread, by one at a time. Made by :meth:`PromptTemplate.open`.
    """

    def __init__(
        self,
        prefix_ids: Sequence[int],
        suffix_ids: Sequence[int],
        document_format: DocumentFormat,
        *,
        max_prompt_tokens: int,
        order: Order = "stable",
        max_document_tokens: int | None = None,
    ) -> None:
        _check_limits(prefix_ids, suffix_ids, document_format, max_prompt_tokens, order, max_document_tokens)
        self.prefix_ids = list(prefix_ids)
        self.suffix_ids = list(suffix_ids)
        self._format = document_format
        self._room = max_prompt_tokens - len(prefix_ids) - len(suffix_ids)
        self._max_document_tokens = max_document_tokens
        self._order = order
        self._content_ids: dict[_DocumentKey, list[int]] = {}
        self._context_ids = list(prefix_ids)
        self._placed: tuple[PlacedDocument, ...] = ()
        self._left_out: tuple[Document, ...] = ()

    @property
    def context_ids(self) -> list[int]:
        """Token ids of prefix and documents as they stand; a new list each time."""
        return list(self._context_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of prefix, documents and suffix."""
        return len(self._context_ids) + len(self.suffix_ids)

    @property
    def documents(self) -> tuple[PlacedDocument, ...]:
        """The documents that the model sees, in their order."""
        return self._placed

    @property
    def left_out(self) -> tuple[Document, ...]:
        """The documents that found no room, in the order in which they would have come."""
        return self._left_out

    def apply(self, delta: ContextDelta) -> PromptChange | None:
        """Take a delta in; return what to tell the engine, None where the tokens stay as they are."""
        wanted = self._wanted(delta)
        before, self._placed = self._placed, self._place(wanted)
        self._left_out = tuple(wanted[len(self._placed) :])
        if _slots(self._placed[: len(before)]) == _slots(before):
            added = self._encode(self._placed[len(before) :])
            self._context_ids += added
            return PromptChange("append", added) if added else None
        changed = self.prefix_ids + self._encode(self._placed)
        if changed == self._context_ids:
            return None
        self._context_ids = changed
        return PromptChange("update", list(changed))

    def _wanted(self, delta: ContextDelta) -> list[Document]:
        """Return the documents that should stand in the prompt, in order, none twice."""
        placed = [slot.document for slot in self._placed]
        if isinstance(delta, Append):
            return list(_unique([*placed, *self._left_out, *delta.documents]).values())
        new = _unique(delta.documents)
        if self._order == "rank":
            return list(new.values())
        kept = {key: new[key] for key in map(_key, placed) if key in new}
        return list((kept | new).values())

    def _place(self, documents: Sequence[Document]) -> tuple[PlacedDocument, ...]:
        """Give documents their room, by the rule of the class. Those that get none are missing at the end."""
        placed = []
        room = self._room
        for document in documents:
            full_length = self._format.num_frame_tokens + len(self._content(document))
            length = min(full_length, self._max_document_tokens or full_length)
            if length > room and room < MIN_CUT_TOKENS:
                break
            num_tokens = min(length, room)
            placed.append(PlacedDocument(document, num_tokens, truncated=num_tokens < full_length))
            room -= num_tokens
        return tuple(placed)

    def _content(self, document: Document) -> list[int]:
        key = _key(document)
        if key not in self._content_ids:
            self._content_ids[key] = self._format.encode(document)
        return self._content_ids[key]

    def _encode(self, placed: Iterable[PlacedDocument]) -> list[int]:
        framed = (self._format.frame(self._content(slot.document), slot.num_tokens) for slot in placed)
        return [token_id for document_ids in framed for token_id in document_ids]


def _key(document: Document) -> _DocumentKey:
    return _DocumentKey((document.source, document.text))


def _unique(documents: Iterable[Document]) -> dict[_DocumentKey, Document]:
    """Return documents by key, in the order in which they came first, each as it came last."""
    return {_key(document): document for document in documents}


def _slots(placed: Iterable[PlacedDocument]) -> list[tuple[_DocumentKey, int]]:
    """Return what determines the tokens: which documents, and how much of each."""
    return [(_key(slot.document), slot.num_tokens) for slot in placed]


def _check_limits(
    prefix_ids: Sequence[int],
    suffix_ids: Sequence[int],
    document_format: DocumentFormat,
    max_prompt_tokens: int,
    order: str,
    max_document_tokens: int | None,
) -> None:
    if order not in ("stable", "rank"):
        raise InvalidInputError(f"order is {order!r}; write 'stable' or 'rank'")
    num_frame_tokens = document_format.num_frame_tokens
    if max_document_tokens is not None and max_document_tokens <= num_frame_tokens:
        raise InvalidInputError(
            f"max_document_tokens is {max_document_tokens}, but the delimiters of a document alone take {num_frame_tokens} "
            "tokens; write a larger number, or None for no limit"
        )
    num_fixed_tokens = len(prefix_ids) + len(suffix_ids)
    if num_fixed_tokens > max_prompt_tokens:
        raise PromptTooLongError(
            f"the prompt has {num_fixed_tokens} tokens without any document ({len(prefix_ids)} before the documents, "
            f"{len(suffix_ids)} with the question behind them), but max_prompt_tokens is {max_prompt_tokens}. Shorten the "
            "question, the history or the system prompt, or use a model with a longer context"
        )
