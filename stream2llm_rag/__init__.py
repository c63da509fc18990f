"""RAG answers that start the moment retrieval ends: context streams into the LLM's KV cache while it is still being found."""

__version__ = "0.1.0.dev0"

from stream2llm_rag.documents import Append, ContextDelta, Document, Replace
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.errors import InvalidInputError, RetrievalError, Stream2LLMError
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Timeline

__all__ = [
    "Append",
    "ContextDelta",
    "Document",
    "InvalidInputError",
    "Replace",
    "RetrievalError",
    "Stream2LLMEngine",
    "Stream2LLMError",
    "StreamingRetriever",
    "Timeline",
]
