"""RAG answers that start the moment retrieval ends: context streams into the LLM's KV cache while it is still being found."""

__version__ = "0.1.0.dev0"
