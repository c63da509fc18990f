"""An extractor that breaks on the pages that say so in their path, as real ones do on some page of the web."""

from __future__ import annotations

import os
import signal
from urllib.parse import urlsplit

from stream2llm_rag.retrievers.crawler.extract import trafilatura_text, visible_text

QUICK = f"{__name__}:quick"
REAL = f"{__name__}:real"


def quick(html: str, url: str) -> str:
    """All visible text."""
    _break(url)
    return visible_text(html)


def real(html: str, url: str) -> str:
    """The main text, as the crawler's own extractor gives it."""
    _break(url)
    return trafilatura_text(html, url)


def _break(url: str) -> None:
    match urlsplit(url).path.split("/")[1]:
        case "extractor-crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "extractor-exits":
            os._exit(3)
        case "extractor-hangs":
            while True:
                signal.sigtimedwait([], 3600)
        case "extractor-raises":
            raise RuntimeError("no idea what this is")
        case "extractor-is-greedy":
            bytearray(4_000_000_000)
