"""What an answer was made of, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stream2llm_rag.documents import Document, RetrievalEvent
from stream2llm_rag.errors import RetrievalError
from stream2llm_rag.prompt import PlacedDocument
from stream2llm_rag.retrievers.report import CrawlReport
from stream2llm_rag.timeline import Timeline


@dataclass(frozen=True, slots=True)
class RAGResult:
    """The answer to one question, with its measures. Durations are in seconds.

    ``ttft_s`` counts from the hand-over of the final context (the retriever's iterator has ended, nothing of what came last is
    tokenised yet) to the first token; ``arrival_to_first_token_s`` from the question's arrival. Both mean the same whether the
    context was streamed or not.

    ``overlap_tokens`` of the ``prompt_tokens`` were computed before the final context and still held then; prefix-cache hits do
    not count. ``last_delta_tokens`` are those from the first one on that the last delta changed.
    ``invalidated_tokens`` lost their KV to a change of the context, ``preemptions`` counts losses to other requests by what was
    done with the KV. In the engine the request had work but did not run for ``waiting_s``, and had none for ``idle_s``.

    ``documents`` are those the model saw, in order; ``left_out`` found no room; ``skipped`` are sources that the retriever
    could not use. ``crawl`` says what came of each host, where the retriever was a crawler. ``retrieval_error`` is set when
    retrieval failed and the answer was made from what had come, ``deadline_reached`` when it was cut short.

    On a ``DisaggregatedEngine`` ``received_tokens`` of the prompt came to the decode engine from the prefill engine; the others
    were in its prefix cache, or it computed them. ``handover_error`` says why none came, and is None when all went well.
    """

    question: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    streaming: bool
    ttft_s: float
    arrival_to_first_token_s: float
    retrieval_s: float
    prompt_tokens: int
    overlap_tokens: int
    computed_tokens: int
    invalidated_tokens: int
    last_delta_tokens: int
    waiting_s: float
    idle_s: float
    documents: tuple[PlacedDocument, ...]
    left_out: tuple[Document, ...]
    skipped: tuple[RetrievalEvent, ...]
    timeline: Timeline
    crawl: CrawlReport | None = None
    preemptions: Mapping[str, int] = field(default_factory=dict)
    retrieval_error: RetrievalError | None = None
    deadline_reached: bool = False
    received_tokens: int = 0
    handover_error: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of ``documents``, each once, in order."""
        return tuple(dict.fromkeys(placed.document.source for placed in self.documents))
