"""LangGraph: a node that answers over a crawl, in a conversation that is remembered. ``python examples/langgraph_rag.py``"""

from __future__ import annotations

import asyncio

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from stream2llm_rag import Stream2LLMEngine, WebCrawler
from stream2llm_rag.demo import DocumentationServer
from stream2llm_rag.integrations.langchain import BackgroundEngine, StreamingRAGRunnable
from stream2llm_rag.tiny_model import build_tiny_model

QUESTIONS = ("How do I cancel an asyncio task?", "And how do I wait for it?")


async def converse(engine: BackgroundEngine, url: str) -> list[AnyMessage]:
    private = [url.split("/")[2]] if url.startswith("http://127.") else []
    async with WebCrawler([url], max_pages=3, allow_private_hosts=private) as crawler:
        rag = StreamingRAGRunnable(engine=engine, retriever=crawler, sampling={"temperature": 0, "max_tokens": 32})

        async def look_up(state: MessagesState, config: RunnableConfig) -> dict[str, list[AnyMessage]]:
            *history, question = state["messages"]
            return {"messages": [await rag.ainvoke({"question": question.text, "history": history}, config)]}

        builder = StateGraph(MessagesState)
        builder.add_node(look_up)
        builder.add_edge(START, "look_up")
        graph = builder.compile(checkpointer=InMemorySaver())
        thread: RunnableConfig = {"configurable": {"thread_id": "1"}}
        for question in QUESTIONS:
            async for chunk, _ in graph.astream({"messages": [HumanMessage(question)]}, thread, stream_mode="messages"):
                print(chunk.text, end="", flush=True)
            print()
        state = await graph.aget_state(thread)
        messages: list[AnyMessage] = state.values["messages"]
        return messages


async def main() -> None:
    async with (
        DocumentationServer() as server,
        BackgroundEngine(
            Stream2LLMEngine(build_tiny_model(), max_model_len=16384, enforce_eager=True, kv_cache_memory_bytes=2**30)
        ) as engine,
    ):
        await converse(engine, server.page("asyncio.tasks"))


if __name__ == "__main__":  # vLLM starts its engine core with spawn, which imports this file again
    asyncio.run(main())
