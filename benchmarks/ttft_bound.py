"""TTFT of a streamed run beside its bound: the same prompt on the idle engine, all but the last page and the question cached.

Crawls once, live, and replays that crawl for each repetition. Streamed runs and bounds alternate, so that what else the machine
does meets both alike. The streamed TTFT counts from the end of retrieval, and so includes the tokenising of the last page,
which the bound gets done for it.

    python benchmarks/ttft_bound.py --repetitions 7 --json ttft_bound.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from stream2llm_rag import Stream2LLMEngine
from stream2llm_rag.demo import TOPICS, DocumentationServer, Experiment, Settings, choose_model, forget_prefixes
from stream2llm_rag.documents import Append
from stream2llm_rag.pipeline import StreamingRAG
from stream2llm_rag.prompt import PromptTemplate
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.recording import Recording, ReplayRetriever

TOPIC = TOPICS[0]


async def measure(model: str | None, num_repetitions: int, settings: Settings) -> dict[str, object]:
    chosen = choose_model(model, settings)
    async with Stream2LLMEngine(chosen.name, **chosen.engine_args) as engine:
        async with DocumentationServer() as server, Experiment(engine, server, [TOPIC], chosen.settings) as experiment:
            await experiment.warm_up()
            [result] = await experiment.stream()
            [recording] = experiment.recordings
        streamed_s, bounds_s = [], []
        for repetition in range(num_repetitions):
            streamed_s.append((await stream(engine, recording, chosen.settings)).ttft_s)
            bounds_s.append(await bound_s(engine, result, chosen.settings))
            print(f"{repetition + 1}: streamed {streamed_s[-1]:.3f} s, bound {bounds_s[-1]:.3f} s", flush=True)
    return {
        "model": chosen.name,
        "prompt_tokens": result.prompt_tokens,
        "last_delta_tokens": result.last_delta_tokens,
        "streamed_ttft_s": streamed_s,
        "bound_ttft_s": bounds_s,
        "median_streamed_ttft_s": median(streamed_s),
        "median_bound_ttft_s": median(bounds_s),
        "ratio": median(streamed_s) / median(bounds_s),
    }


async def stream(engine: Stream2LLMEngine, recording: Recording, settings: Settings) -> RAGResult:
    await forget_prefixes(engine)
    rag = StreamingRAG(
        engine,
        ReplayRetriever(recording),
        sampling=settings.sampling,
        max_document_tokens=settings.max_document_tokens,
    )
    return await rag.answer(TOPIC.question)


async def bound_s(engine: Stream2LLMEngine, result: RAGResult, settings: Settings) -> float:
    """TTFT of the prompt of ``result``, in seconds, with what stands before its last page in the prefix cache."""
    prompt = PromptTemplate(engine.tokenizer).open(
        result.question, max_prompt_tokens=engine.max_model_len, max_document_tokens=settings.max_document_tokens
    )
    *earlier, last = (placed.document for placed in result.documents)
    prompt.apply(Append(tuple(earlier)))
    cached_ids = prompt.context_ids
    prompt.apply(Append((last,)))
    await forget_prefixes(engine)
    await first_token_s(engine, cached_ids)
    return await first_token_s(engine, prompt.context_ids + prompt.suffix_ids)


async def first_token_s(engine: Stream2LLMEngine, token_ids: Sequence[int]) -> float:
    started_s = time.monotonic()
    found_s = 0.0
    async for output in engine.generate(token_ids, {"temperature": 0, "max_tokens": 1}):
        if output.token_ids and not found_s:
            found_s = time.monotonic() - started_s
    return found_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model of vLLM's; without it a tiny one with random weights")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all measures to this file")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    found = asyncio.run(measure(arguments.model, arguments.repetitions, Settings()))
    print(
        f"{found['prompt_tokens']} prompt tokens, of which the last page has {found['last_delta_tokens']}. Median TTFT: "
        f"streamed {found['median_streamed_ttft_s']:.3f} s, bound {found['median_bound_ttft_s']:.3f} s, "
        f"{found['ratio']:.2f} times the bound."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
