"""No framework: an async iterator over the answer. ``python examples/plain_async.py``"""

from __future__ import annotations

import asyncio

from stream2llm_rag import RAGResult, Stream2LLMEngine, StreamingRAG, WebCrawler
from stream2llm_rag.demo import DocumentationServer
from stream2llm_rag.pipeline import Engine
from stream2llm_rag.tiny_model import build_tiny_model

QUESTION = "How do I cancel an asyncio task?"


async def ask(engine: Engine, url: str) -> RAGResult:
    private = [url.split("/")[2]] if url.startswith("http://127.") else []
    async with WebCrawler([url], max_pages=4, allow_private_hosts=private) as crawler:
        rag = StreamingRAG(engine, crawler, sampling={"temperature": 0, "max_tokens": 32})
        async with rag.stream(QUESTION) as answer:
            async for text in answer:
                print(text, end="", flush=True)
    print()
    return answer.result


async def main() -> None:
    async with (
        DocumentationServer() as server,
        Stream2LLMEngine(build_tiny_model(), max_model_len=16384, enforce_eager=True, kv_cache_memory_bytes=2**30) as engine,
    ):
        result = await ask(engine, server.page("asyncio.tasks"))
        print(f"{result.ttft_s:.3f} s after retrieval, {result.overlap_tokens} of {result.prompt_tokens} tokens were computed")
        print(*result.sources, sep="\n")


if __name__ == "__main__":  # vLLM starts its engine core with spawn, which imports this file again
    asyncio.run(main())
