"""An extractor for tests: what it does depends on the path of the page."""

from __future__ import annotations

import os
import signal
import sys
from urllib.parse import urlsplit

from stream2llm_rag.retrievers.crawler.extract import visible_text

PATH = f"{__name__}:extract"


def extract(html: str, url: str) -> str:
    match urlsplit(url).path:
        case "/crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "/exit":
            os._exit(3)
        case "/hang":
            signal.sigwait([signal.SIGUSR1])
        case "/raise":
            raise RuntimeError("boom")
        case "/greedy":
            bytearray(4_000_000_000)
        case "/babble":
            os.write(1, b"not a frame" * 1000)
        case "/modules":
            return " ".join(sys.modules)
        case "/pid":
            return str(os.getpid())
    return visible_text(html)
