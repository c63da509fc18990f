"""Values that travel from a retriever to the engine: documents, and deltas of the context they form.

All of them are frozen. Times are seconds of :func:`time.monotonic`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Document:
    """One retrieved piece of text.

    ``source`` identifies it (a URL or an id) and is what a result cites; two documents of one context may share a source,
    as two chunks of one page do. ``score`` is the retriever's own, higher is better.
    """

    text: str
    source: str
    title: str | None = None
    score: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class RetrievalEvent:
    """Something a retriever did, for the timeline and the result.

    ``kind`` is a short verb: ``fetch`` (a page came), ``skip`` (a source was left out; ``detail`` says why), ``retry`` (it is
    to be tried again), ``list`` and ``search`` (it led to others), or a retriever's own. ``started_s`` and ``ended_s`` are
    equal for an instant. ``category`` is a word to count events of a kind by, such as why a source was left out. ``steps`` are
    what was done in between; their kinds are the retriever's own.
    """

    kind: str
    source: str
    started_s: float
    ended_s: float
    detail: str | None = None
    title: str | None = None
    category: str | None = None
    steps: tuple[RetrievalEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Append:
    """The context grows: ``documents`` go behind those that are there.

    ``num_remaining`` is how many more deltas the retriever expects, where it knows: a hint, never a promise.
    ``documents`` may be empty, to report ``events`` alone.
    """

    documents: tuple[Document, ...]
    num_remaining: int | None = None
    events: tuple[RetrievalEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Replace:
    """The context changes: ``documents`` is the complete new list, best first."""

    documents: tuple[Document, ...]
    num_remaining: int | None = None
    events: tuple[RetrievalEvent, ...] = ()


ContextDelta: TypeAlias = Append | Replace


def context_after(documents: tuple[Document, ...], delta: ContextDelta) -> tuple[Document, ...]:
    """The context that ``delta`` makes of ``documents``. TypeError, which says what to write, where it is no delta."""
    if not isinstance(delta, Append | Replace):
        raise TypeError(f"a retriever yields Append(documents) or Replace(documents), but {type(delta).__name__} came.")
    for document in delta.documents:
        check_document(document)
    return (*documents, *delta.documents) if isinstance(delta, Append) else tuple(delta.documents)


def check_document(document: object) -> None:
    """TypeError, which says what to write, for what is no document."""
    if not isinstance(document, Document):
        raise TypeError(f"a document is Document(text, source), but {type(document).__name__} came.")
    for name, value in (("text", document.text), ("source", document.source), ("title", document.title)):
        if not isinstance(value, str) and not (name == "title" and value is None):
            raise TypeError(f"{name} of a document is a str, but {value!r:.200} came.")
