"""Where the library keeps what it builds and measures."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """``$STREAM2LLM_CACHE``, else ``stream2llm`` in the user's cache directory."""
    chosen = os.environ.get("STREAM2LLM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stream2llm"
