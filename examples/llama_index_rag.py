"""LlamaIndex: a crawl and a model, fused into one query engine, from a plain script. ``python examples/llama_index_rag.py``"""

from __future__ import annotations

from llama_index.core.base.response.schema import Response, StreamingResponse

from stream2llm_rag import Stream2LLMEngine, WebCrawler
from stream2llm_rag.demo import DocumentationServer
from stream2llm_rag.integrations.llama_index import BackgroundEngine, StreamingRAGQueryEngine
from stream2llm_rag.tiny_model import build_tiny_model

QUESTION = "How do I cancel an asyncio task?"


def ask(engine: BackgroundEngine, url: str) -> Response:
    private = [url.split("/")[2]] if url.startswith("http://127.") else []
    crawler = engine.host(WebCrawler([url], max_pages=4, allow_private_hosts=private))  # opened on the engine's loop
    sampling = {"temperature": 0, "max_tokens": 32}
    query_engine = StreamingRAGQueryEngine(engine, crawler, streaming=True, sampling=sampling)
    response = query_engine.query(QUESTION)
    assert isinstance(response, StreamingResponse)
    response.print_response_stream()
    for found in response.source_nodes:
        print(found.node.metadata["source"])
    return response.get_response()


def main() -> None:
    with BackgroundEngine(
        Stream2LLMEngine(build_tiny_model(), max_model_len=16384, enforce_eager=True, kv_cache_memory_bytes=2**30)
    ) as engine:
        server = engine.enter(DocumentationServer())
        ask(engine, server.page("asyncio.tasks"))


if __name__ == "__main__":  # vLLM starts its engine core with spawn, which imports this file again
    main()
