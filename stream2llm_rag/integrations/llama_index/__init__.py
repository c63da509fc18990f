"""For users of LlamaIndex: an LLM, a retriever, and both fused into a query engine. Needs the ``llama-index`` extra."""

import importlib.util

from stream2llm_rag.errors import MissingExtraError

if importlib.util.find_spec("llama_index") is None or importlib.util.find_spec("llama_index.core") is None:
    raise MissingExtraError("llama-index-core, which stream2llm_rag.integrations.llama_index needs,", "llama-index")

from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.llama_index.llm import Stream2LLM
from stream2llm_rag.integrations.llama_index.query_engine import StreamingRAGQueryEngine
from stream2llm_rag.integrations.llama_index.retriever import Stream2LLMRetriever
from stream2llm_rag.integrations.sources import StreamingSource

__all__ = ["BackgroundEngine", "Stream2LLM", "Stream2LLMRetriever", "StreamingRAGQueryEngine", "StreamingSource"]
