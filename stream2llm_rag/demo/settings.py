"""How the demo answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """How each question is answered.

    ``max_pages`` documents at most. A crawl has the manners that a site on the web expects: one request at a time, ``delay_s``
    seconds apart (0.7 is the median gap between pages in the crawls of the paper on Stream2LLM, arXiv 2604.16395); a search
    waits that long after each hop. Each document goes in with at most ``max_document_tokens`` tokens, so that no single one
    makes up the prompt. ``sampling`` should be greedy, or answers differ by chance.
    """

    max_pages: int = 12
    delay_s: float = 0.7
    max_document_tokens: int = 1000
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 64})
