"""LangChain: a crawl and a model, fused into one Runnable. ``python examples/langchain_rag.py``

It crawls Python's own documentation, from a local server, with a tiny model of random weights: its text is noise.
"""

from __future__ import annotations

import asyncio

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough

from stream2llm_rag import Stream2LLMEngine, WebCrawler
from stream2llm_rag.demo import DocumentationServer
from stream2llm_rag.integrations.langchain import BackgroundEngine, StreamingRAGRunnable
from stream2llm_rag.tiny_model import build_tiny_model

QUESTION = "How do I cancel an asyncio task?"


async def answer(engine: BackgroundEngine, url: str) -> str:
    private = [url.split("/")[2]] if url.startswith("http://127.") else []
    async with WebCrawler([url], max_pages=4, allow_private_hosts=private) as crawler:
        rag = StreamingRAGRunnable(engine=engine, retriever=crawler, sampling={"temperature": 0, "max_tokens": 32})
        chain = {"question": RunnablePassthrough()} | rag
        async for event in chain.astream_events(QUESTION):
            if event["event"] == "on_custom_event":  # what happens while the crawl runs
                print(f"{event['data']['at_s']:7.3f} s  {event['name']:15} {event['data']['label']}")
        message = await chain.ainvoke(QUESTION)
        print("sources:", *message.response_metadata["sources"])
        return await (chain | StrOutputParser()).ainvoke(QUESTION)


async def main() -> None:
    async with (
        DocumentationServer() as server,
        BackgroundEngine(
            Stream2LLMEngine(build_tiny_model(), max_model_len=16384, enforce_eager=True, kv_cache_memory_bytes=2**30)
        ) as engine,
    ):
        print(await answer(engine, server.page("asyncio.tasks")))


if __name__ == "__main__":  # vLLM starts its engine core with spawn, which imports this file again
    asyncio.run(main())
