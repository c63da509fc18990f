"""Adapters to frameworks, and what they share: an engine in the background, and sources made of ordinary retrievers.

``langchain`` and ``llama_index`` need the extras of their names; this package itself needs neither.
"""

from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.sources import Search, StreamingSource

__all__ = ["BackgroundEngine", "Search", "StreamingSource"]
