"""A stock chain and a fused one over the same slow retriever, in both frameworks: ``python -m benchmarks.frameworks``.

The stock chain is what their users have: retrieve everything, then ask the model. ``ttft_s`` counts from the end of retrieval
to the first token, ``arrival_to_first_token_s`` from the question.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer

from stream2llm_rag import Append, ContextDelta, Document, Stream2LLMEngine
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations import langchain as for_langchain
from stream2llm_rag.integrations import llama_index as for_llama_index
from stream2llm_rag.tiny_model import build_tiny_model

QUESTION = "How do I cancel a task?"
SENTENCE = "A task is cancelled by calling its cancel method, and awaited afterwards. "


@dataclass(frozen=True, slots=True)
class Row:
    """``order`` names what happened, in order: ``prefill`` (streamed context was computed), ``retrieved``, ``first_token``."""

    chain: str
    ttft_s: float
    arrival_to_first_token_s: float
    order: tuple[str, ...]


class Slow:
    """A page every ``gap_s`` seconds. ``ended_at`` is when the last stream ended."""

    def __init__(self, num_pages: int, num_sentences: int, gap_s: float) -> None:
        self._pages = [Document(f"{SENTENCE * num_sentences}{i}", f"https://docs.example/{i}") for i in range(num_pages)]
        self._gap_s = gap_s
        self.ended_at = 0.0

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The pages."""
        for page in self._pages:
            await asyncio.sleep(self._gap_s)
            yield Append((page,))
        self.ended_at = time.monotonic()


async def langchain(engine: BackgroundEngine, slow: Slow, max_tokens: int) -> list[Row]:
    """``retriever | prompt | model`` and the fused runnable."""
    prompt = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}")
    retriever = for_langchain.Stream2LLMRetriever(retriever=slow)
    chat = for_langchain.ChatStream2LLM(engine=engine, temperature=0, max_tokens=max_tokens)
    context = retriever | (lambda found: "\n\n".join(document.page_content for document in found))
    stock = {"context": context, "question": lambda question: question} | prompt | chat
    sampling = {"temperature": 0, "max_tokens": max_tokens}
    fused = for_langchain.StreamingRAGRunnable(engine=engine, retriever=slow, sampling=sampling)
    return [
        await _timed("LangChain, stock", slow, _langchain_events(stock)),
        await _timed("LangChain, fused", slow, _langchain_events(fused)),
    ]


async def llama_index(engine: BackgroundEngine, slow: Slow, max_tokens: int) -> list[Row]:
    """``RetrieverQueryEngine`` and the fused query engine."""
    llm = for_llama_index.Stream2LLM(engine=engine, temperature=0, max_tokens=max_tokens)
    stock = RetrieverQueryEngine(
        for_llama_index.Stream2LLMRetriever(slow), get_response_synthesizer(llm=llm, streaming=True, use_async=True)
    )
    happened: list[str] = []
    sampling = {"temperature": 0, "max_tokens": max_tokens}
    fused = for_llama_index.StreamingRAGQueryEngine(
        engine, slow, streaming=True, sampling=sampling, on_event=lambda event: happened.append(event.kind.value)
    )
    return [
        await _timed("LlamaIndex, stock", slow, _llama_index_events(stock, [])),
        await _timed("LlamaIndex, fused", slow, _llama_index_events(fused, happened)),
    ]


async def _timed(chain: str, slow: Slow, events: AsyncIterator[str]) -> Row:
    started_at = time.monotonic()
    first_at = 0.0
    order: list[str] = []
    async for event in events:
        if event == "first_token" and not first_at:
            first_at = time.monotonic()
        order.append(event)
    return Row(chain, first_at - slow.ended_at, first_at - started_at, tuple(dict.fromkeys(order)))


async def _langchain_events(chain: Any) -> AsyncIterator[str]:
    async for event in chain.astream_events(QUESTION):
        match event:
            case {"event": "on_custom_event", "name": "prefill"}:
                yield "prefill"
            case {"event": "on_retriever_end"}:
                yield "retrieved"
            case {"event": "on_chat_model_stream"}:
                yield "first_token"


async def _llama_index_events(engine: Any, happened: list[str]) -> AsyncIterator[str]:
    names = {"computed": "prefill", "retrieval_end": "retrieved"}
    response = await engine.aquery(QUESTION)
    async for _ in response.async_response_gen():
        for name in [names[event] for event in happened if event in names] or ["retrieved"]:
            yield name
        yield "first_token"


def show(rows: list[Row]) -> str:
    """A table."""
    lines = [f"{'':20} {'TTFT':>8} {'from the question':>18}"]
    lines += [f"{row.chain:20} {row.ttft_s:>6.3f} s {row.arrival_to_first_token_s:>16.3f} s" for row in rows]
    return "\n".join(lines)


async def measure(engine: BackgroundEngine, slow: Slow, max_tokens: int = 8) -> list[Row]:
    """All four, one after the other."""
    return [*await langchain(engine, slow, max_tokens), *await llama_index(engine, slow, max_tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description="A stock chain and a fused one over the same slow retriever.")
    parser.add_argument("--model", default=None, help="a tiny random one by default")
    parser.add_argument("--pages", type=int, default=8)
    parser.add_argument("--gap-s", type=float, default=0.5, help="seconds between pages")
    given = parser.parse_args()
    model: str | Path = given.model or build_tiny_model()
    engine = Stream2LLMEngine(model, max_model_len=16384, enforce_eager=True, dtype="float32", enable_prefix_caching=False)
    with BackgroundEngine(engine) as background:
        asyncio.run(measure(background, Slow(1, 4, 0.0)))  # what starts only once
        print(show(asyncio.run(measure(background, Slow(given.pages, 50, given.gap_s)))))


if __name__ == "__main__":
    main()
