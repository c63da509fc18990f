"""A StreamingRetriever over a DiskANN index."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from stream2llm_rag.documents import Document, Replace, RetrievalEvent
from stream2llm_rag.errors import InvalidInputError, RetrievalError, Stream2LLMError
from stream2llm_rag.retrievers.base import require_question
from stream2llm_rag.retrievers.diskann.index import DiskANNIndex
from stream2llm_rag.retrievers.diskann.search import MAX_COMPLEXITY, SearchParameters
from stream2llm_rag.retrievers.diskann.stability import EMITS, Emit, Gate, Snapshot, Thresholds

Embed: TypeAlias = Callable[[str], Any]

# The methods of embeddings of frameworks that embed a question: first those that are awaited.
_EMBEDDING_METHODS = ("aembed_query", "aget_query_embedding", "embed_query", "get_query_embedding")


class DiskANNRetriever:
    """Streams the documents of an index that are nearest to a question: each as soon as it will most likely stay.

    ``embed`` turns a question into a vector: a function, one that is awaited, or an embedding of LangChain or LlamaIndex
    (anything with ``embed_query`` or ``get_query_embedding``). It must be the one that embedded the documents.

    Every delta is a Replace, nearest first, of at most ``top_k`` documents; the last one of all, where the index has fewer.
    ``emit="stable"`` shows the documents that the stability gate lets through, by the thresholds that the index was calibrated
    to, or by ``thresholds``; ``"eager"`` shows the whole top k whenever it changes, ``"final"`` nothing before the end. The
    last delta is the whole result, the same in all three: that of the full search.

    Many streams at once, within the ``max_searches`` of the index. Closing the index is up to its owner.
    """

    def __init__(
        self,
        index: DiskANNIndex,
        embed: Any,
        *,
        top_k: int = 10,
        complexity: int = 100,
        beam_width: int = 4,
        emit: Emit = "stable",
        thresholds: Thresholds | None = None,
    ) -> None:
        if emit not in EMITS:
            raise InvalidInputError(f"emit is one of {', '.join(EMITS)}, but {emit!r} came.")
        if not index.has_documents:
            raise InvalidInputError(
                "A retriever needs an index with documents. Write: DiskANNIndex.build(..., documents=documents)"
            )
        parameters = SearchParameters(top_k, complexity, beam_width)
        parameters.check(MAX_COMPLEXITY)
        self._index = index
        self._embed = _embedder(embed)
        self._parameters = replace(parameters, top_k=min(top_k, index.num_points))
        self._emit: Emit = emit
        self._thresholds = thresholds

    async def stream(self, query: str) -> AsyncIterator[Replace]:
        """The documents so far, and at the end all of them. Raises RetrievalError where embedding, search or documents fail."""
        require_question(query)
        started_s = time.monotonic()
        vector = await self._embed(query)
        yield Replace((), events=(_event("embed", query, started_s, "the question"),))
        parameters = self._parameters
        sizes = {"top_k": parameters.top_k, "complexity": parameters.complexity, "beam_width": parameters.beam_width}
        thresholds = self._thresholds or self._index.thresholds(**sizes)
        gate, reading = Gate(thresholds, self._emit), _Reading(self._index)
        progress = _Progress(num_shown=0, since_s=time.monotonic())
        async with aclosing(self._index.search(vector, **sizes)) as snapshots:
            async for snapshot in snapshots:
                if (shown := gate.pass_on(snapshot)) is None:
                    continue
                documents = await reading.read(shown, snapshot)
                event = _snapshot_event(snapshot, len(shown), progress.since_s)
                progress = progress.after_delta(time.monotonic())
                yield Replace(documents, progress.num_remaining(snapshot), (event,))


@dataclass(frozen=True, slots=True)
class _Progress:
    """How many deltas came, and when the last of them did."""

    num_shown: int
    since_s: float

    def after_delta(self, now_s: float) -> _Progress:
        return replace(self, num_shown=self.num_shown + 1, since_s=now_s)

    def num_remaining(self, snapshot: Snapshot) -> int:
        """How many deltas are still expected, if they go on coming as they did: at least the final one."""
        if snapshot.is_final:
            return 0
        return max(1, round(self.num_shown * (1 - snapshot.progress) / max(snapshot.progress, 0.01)))


class _Reading:
    """Reads documents of one stream, each from the disk once."""

    def __init__(self, index: DiskANNIndex) -> None:
        self._index = index
        self._read: dict[int, Document] = {}

    async def read(self, ids: Sequence[int], snapshot: Snapshot) -> tuple[Document, ...]:
        if missing := [id_ for id_ in ids if id_ not in self._read]:
            found = await asyncio.to_thread(self._index.documents, missing)
            scores = dict(zip(snapshot.ids, map(self._index.score, snapshot.distances), strict=True))
            self._read |= {id_: replace(document, score=scores[id_]) for id_, document in zip(missing, found, strict=True)}
        return tuple(self._read[id_] for id_ in ids)


def _embedder(embed: Any) -> Callable[[str], Awaitable[Any]]:
    """``embed`` as a function that is awaited, off the event loop where it is not, and whose errors are RetrievalErrors."""
    methods = (getattr(embed, name, None) for name in _EMBEDDING_METHODS)
    function: Any = next(filter(callable, methods), embed)
    if not callable(function):
        raise InvalidInputError(
            f"embed is a function, or has embed_query or get_query_embedding, but a {type(embed).__name__} came."
        )

    async def awaited(question: str) -> Any:
        try:
            if _is_awaited(function):
                return await function(question)
            vector: Any = await asyncio.to_thread(function, question)
            return (await vector) if inspect.isawaitable(vector) else vector
        except Stream2LLMError:
            raise
        except Exception as error:
            raise RetrievalError(f"The question could not be embedded: {error!r}") from error

    return awaited


def _is_awaited(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _event(kind: str, source: str, started_s: float, detail: str) -> RetrievalEvent:
    return RetrievalEvent(kind, source, started_s, time.monotonic(), detail, title=kind)


def _snapshot_event(snapshot: Snapshot, num_shown: int, since_s: float) -> RetrievalEvent:
    """A snapshot on the timeline: from the one before to now."""
    words = "all, final" if snapshot.is_final else f"{num_shown} of {len(snapshot.ids)}"
    title = f"{words} after {snapshot.num_reads} reads"
    return RetrievalEvent("snapshot", "DiskANN", since_s, time.monotonic(), f"{snapshot.num_hops} hops", title)
