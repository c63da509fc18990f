"""A served engine: start `stream2llm serve MODEL`, then ``python examples/remote.py http://localhost:8000 [API_KEY]``.

Every other example works so, too: RemoteEngine(URL) takes the place of Stream2LLMEngine(...), and nothing else changes.
"""

from __future__ import annotations

import asyncio
import sys

from stream2llm_rag import RAGResult, StreamingRAG, WebCrawler
from stream2llm_rag.demo import DocumentationServer
from stream2llm_rag.pipeline import Engine
from stream2llm_rag.serve import RemoteEngine

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


async def main(url: str, api_key: str | None = None) -> None:
    async with DocumentationServer() as server, RemoteEngine(url, api_key=api_key) as engine:
        result = await ask(engine, server.page("asyncio.tasks"))
        print(f"{result.ttft_s:.3f} s after retrieval, {result.overlap_tokens} of {result.prompt_tokens} tokens were computed")
        print(*result.sources, sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
