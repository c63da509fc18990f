"""For users of LangChain: a chat model, a retriever, and both fused into one Runnable. Needs the ``langchain`` extra."""

import importlib.util

from stream2llm_rag.errors import MissingExtraError

if importlib.util.find_spec("langchain_core") is None:
    raise MissingExtraError("langchain-core, which stream2llm_rag.integrations.langchain needs,", "langchain")

from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.langchain.chat_model import ChatStream2LLM
from stream2llm_rag.integrations.langchain.retriever import Stream2LLMRetriever
from stream2llm_rag.integrations.langchain.runnable import StreamingRAGRunnable
from stream2llm_rag.integrations.sources import StreamingSource

__all__ = ["BackgroundEngine", "ChatStream2LLM", "Stream2LLMRetriever", "StreamingRAGRunnable", "StreamingSource"]
