"""RAG answers that start the moment retrieval ends: context streams into the LLM's KV cache while it is still being found."""

__version__ = "0.1.0.dev0"

from typing import TYPE_CHECKING

from stream2llm_rag.documents import Append, ContextDelta, Document, Replace
from stream2llm_rag.engine.disaggregated import DisaggregatedEngine
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.errors import InvalidInputError, RetrievalError, Stream2LLMError
from stream2llm_rag.pipeline import AnswerStream, StreamingRAG
from stream2llm_rag.result import RAGResult
from stream2llm_rag.retrievers.base import StreamingRetriever
from stream2llm_rag.timeline import Timeline

__all__ = [
    "AnswerStream",
    "Append",
    "ContextDelta",
    "DisaggregatedEngine",
    "Document",
    "InvalidInputError",
    "RAGResult",
    "Replace",
    "RetrievalError",
    "Stream2LLMEngine",
    "Stream2LLMError",
    "StreamingRAG",
    "StreamingRetriever",
    "Timeline",
    "WebCrawler",
]

if TYPE_CHECKING:
    from stream2llm_rag.retrievers.crawler import WebCrawler
else:  # hidden from type checkers, which would take any misspelt name for one that exists

    def __getattr__(name: str) -> object:
        """Import the crawler when it is first asked for (PEP 562): it needs an extra, and takes half a second."""
        if name != "WebCrawler":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from stream2llm_rag.retrievers.crawler import WebCrawler

        return WebCrawler
