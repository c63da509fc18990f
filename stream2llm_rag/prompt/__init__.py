"""From a question and the documents found for it to token ids.

``template`` splits the model's chat template into prefix, documents and suffix; ``context`` is one question's prompt while its
documents come; ``sanitize`` and ``markers`` keep document text from passing for anything else; ``rendering`` and ``encoding``
stand between us and the tokenizer. Nothing here imports vLLM or transformers.
"""

from stream2llm_rag.prompt.context import ContextPrompt, Order, PlacedDocument, PromptChange
from stream2llm_rag.prompt.sanitize import Sanitizer, strip_invisible
from stream2llm_rag.prompt.template import DEFAULT_SYSTEM_PROMPT, PromptTemplate

__all__ = [
    "DEFAULT_SYSTEM_PROMPT",
    "ContextPrompt",
    "Order",
    "PlacedDocument",
    "PromptChange",
    "PromptTemplate",
    "Sanitizer",
    "strip_invisible",
]
