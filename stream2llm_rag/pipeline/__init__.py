"""Join a retriever and an engine: the context streams into the KV cache while it is found.

``rag`` is what users hold, ``answer`` one answer on its way, ``retrieval`` reads the retriever, ``feeder`` brings what it found
into the prompt and the engine.
"""

from stream2llm_rag.pipeline.answer import AnswerStream, Engine
from stream2llm_rag.pipeline.rag import DEFAULT_MAX_TOKENS, StreamingRAG

__all__ = ["DEFAULT_MAX_TOKENS", "AnswerStream", "Engine", "StreamingRAG"]
