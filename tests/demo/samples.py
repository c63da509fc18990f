"""Results to compare."""

from __future__ import annotations

from typing import Any

from stream2llm_rag.demo import Answers
from stream2llm_rag.documents import Document
from stream2llm_rag.prompt import PlacedDocument
from stream2llm_rag.result import RAGResult
from stream2llm_rag.timeline import Event, EventKind, Timeline


def result(question: str = "How?", streaming: bool = True, ttft_s: float = 0.25, **changes: Any) -> RAGResult:
    """An answer of three tokens over two pages that came within 4 s."""
    documents = tuple(PlacedDocument(Document("text", f"https://docs.example/{number}"), 500, False) for number in range(2))
    values: dict[str, Any] = {
        "question": question,
        "text": "yes",
        "token_ids": (1, 2, 3),
        "finish_reason": "length",
        "streaming": streaming,
        "ttft_s": ttft_s,
        "arrival_to_first_token_s": 4 + ttft_s,
        "retrieval_s": 4.0,
        "prompt_tokens": 1100,
        "overlap_tokens": 600 if streaming else 0,
        "computed_tokens": 1100,
        "invalidated_tokens": 0,
        "last_delta_tokens": 500,
        "waiting_s": 0.0,
        "idle_s": 0.0,
        "documents": documents,
        "left_out": (),
        "skipped": (),
        "timeline": timeline(question, streaming, ttft_s),
    }
    return RAGResult(**{**values, **changes})


def timeline(question: str, streaming: bool, ttft_s: float) -> Timeline:
    happened = (
        Event(EventKind.FETCH, 0, 4, "Page 1"),
        Event(EventKind.FINAL_CONTEXT, 4, 4),
        Event(EventKind.FIRST_TOKEN, 4 + ttft_s, 4 + ttft_s),
    )
    return Timeline(question, "streaming" if streaming else "non_streaming", happened, {"ttft_s": ttft_s})


def answers(question: str = "How?", ttft_s: float = 0.25, usual_ttft_s: float = 2.0, **changes: Any) -> Answers:
    """Equal answers both ways and another one to the control; ``changes`` replace one of the three."""
    made = {
        "streamed": result(question, True, ttft_s),
        "usual": result(question, False, usual_ttft_s),
        "control": result(question, False, usual_ttft_s, token_ids=(1, 2, 4)),
    }
    return Answers(**{**made, **changes})
