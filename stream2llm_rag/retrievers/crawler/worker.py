"""The main function of an extraction process: a page in, its outline and then its text out, until the pipe closes."""

from __future__ import annotations

import importlib
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import BinaryIO

from stream2llm_rag.retrievers.crawler.extract import decode, outline_of
from stream2llm_rag.retrievers.crawler.pages import Focus, Outline, Page
from stream2llm_rag.retrievers.crawler.pdf import read_pdf
from stream2llm_rag.retrievers.crawler.relevance import Passages, excerpt
from stream2llm_rag.retrievers.crawler.similarity import signature_of
from stream2llm_rag.retrievers.crawler.wire import LENGTH, Failure, Ready, Reply, Text, decode_page, encode_reply

_MAX_MEMORY_BYTES = 2_000_000_000

Extractor = Callable[[str, str], str]
"""``(html, url) -> text``."""


def main(extractor_path: str, timeout_s: float) -> None:
    """Serve pages from stdin. ``extractor_path`` is ``module:function``; ``timeout_s`` the time limit of a page in seconds."""
    pages = sys.stdin.buffer
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not land between two frames
    # A page that wants more ends in a MemoryError, or with its process; either way it costs only itself.
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    logging.disable(logging.CRITICAL)  # bad markup of strangers is no news; what matters goes into the reply
    try:
        extractor = load_extractor(extractor_path)
    except Exception as error:
        _send(replies, Failure(f"no extractor {extractor_path!r}: {error!r}"))
        return
    _send(replies, Ready())
    while (received := _receive(pages)) is not None:
        # The crawler ends a page that takes too long. Should the crawler itself be gone, the kernel does, even inside C code.
        signal.alarm(math.ceil(timeout_s) + 5)
        for reply in read_page(*received, extractor):
            _send(replies, reply)
        signal.alarm(0)


def load_extractor(path: str) -> Extractor:
    """The function that ``module:function`` names."""
    module, _, function = path.partition(":")
    extractor: Extractor = getattr(importlib.import_module(module), function)
    return extractor


def read_page(page: Page, focus: Focus, extractor: Extractor) -> Iterator[Reply]:
    """The outline as soon as it is there, so that its links are followed meanwhile; then the text."""
    try:
        if page.is_pdf:
            pdf = read_pdf(page.body)
            yield Outline(title=pdf.title, date=pdf.date)
            text = pdf.text
        else:
            text = "" if page.is_list else decode(page)
            yield outline_of(page, text, focus.question)
            text = extractor(text, page.url) if page.is_html else text
        passages = Passages.of(text)
        yield replace(_focused(passages, focus), signature=signature_of([*chain.from_iterable(passages.terms)]))
    except Exception as error:  # whatever a stranger's markup brings about, the next page is another one
        yield Failure(f"its text could not be extracted: {error!r}")


def _focused(passages: Passages, focus: Focus) -> Text:
    if focus.question is None:
        return Text(passages.text)
    kept = excerpt(focus.question, passages, focus.max_page_tokens)
    return Text(kept.text, kept.score, kept.is_cut)


def _send(replies: BinaryIO, reply: Reply) -> None:
    replies.write(encode_reply(reply))
    replies.flush()


def _receive(pages: BinaryIO) -> tuple[Page, Focus] | None:
    head = _read_frame(pages)
    body = _read_frame(pages)
    return None if head is None or body is None else decode_page(head, body)


def _read_frame(pages: BinaryIO) -> bytes | None:
    length = pages.read(LENGTH.size)
    return pages.read(LENGTH.unpack(length)[0]) if len(length) == LENGTH.size else None
