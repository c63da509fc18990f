"""Python's documentation as a corpus to search: sections of the pydoc pages, and an index of them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stream2llm_rag.cache_dir import default_cache_dir
from stream2llm_rag.demo.searching import COMPLEXITY
from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.documents import Document
from stream2llm_rag.errors import RetrievalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream2llm_rag.retrievers.diskann import BuildProgress

_SCRIPT = Path(__file__).with_name("pydoc_texts.py")
_TIMEOUT_S = 300.0
_MIN_SECTION_CHARACTERS = 2400  # 500 to 1,000 tokens
_INDEX_VERSION = 2
_NUM_CALIBRATION_QUERIES = 80


def documentation_sections() -> list[Document]:
    """The documentation of every public module, in sections of some 2,400 characters. Takes some seconds.

    Raises :class:`RetrievalError` where Python cannot document itself.
    """
    # -I and -S: neither the environment nor site-packages add modules.
    command = (sys.executable, "-I", "-S", str(_SCRIPT))
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)  # noqa: S603 - our own
    except subprocess.TimeoutExpired as error:
        raise RetrievalError(f"Python's documentation could not be written within {_TIMEOUT_S:g} s.") from error
    pages = [json.loads(line) for line in done.stdout.decode().splitlines()]
    if done.returncode != 0 or not pages:
        raise RetrievalError(f"Python's documentation could not be written: {done.stderr.decode()[-1000:]}")
    return [document for module, text in pages for document in split_page(module, text)]


def split_page(module: str, text: str) -> Iterator[Document]:
    """A page in sections: cut at the first empty line after 2,400 characters."""
    for number, section in enumerate(_sections(text), 1):
        title = f"{module}, part {number}"
        yield Document(section, f"pydoc:{module}#{number}", title, metadata={"module": module})


def open_or_build_index(on_progress: Callable[[BuildProgress], None] | None = None) -> Path:
    """The folder of the index of Python's documentation, built at first use, in some ten seconds; see ``default_cache_dir``."""
    from stream2llm_rag.retrievers.diskann import DiskANNIndex
    from stream2llm_rag.retrievers.diskann.embedding import embed_documents

    directory = default_cache_dir() / f"pydoc-{platform.python_version()}-index-{_INDEX_VERSION}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        documents = documentation_sections()
        embedding, vectors = embed_documents(documents)
        DiskANNIndex.build(
            vectors, directory, documents=documents, metric="cosine", extras=embedding.save, on_progress=on_progress
        )
        sample = documents[:: max(1, len(documents) // _NUM_CALIBRATION_QUERIES)]
        with DiskANNIndex.open(directory, reader="memory") as index:
            queries = embedding.embed([" ".join(document.text.split()[-20:]) for document in sample])
            index.calibrate(queries[queries.any(1)], top_k=Settings().max_pages, complexities=[COMPLEXITY], precision=0.95)
    return directory


def _sections(text: str) -> Iterator[str]:
    lines: list[str] = []
    num_characters = 0
    for line in text.splitlines():
        lines.append(line)
        num_characters += len(line) + 1
        if num_characters >= _MIN_SECTION_CHARACTERS and not line.strip(" |"):
            yield "\n".join(lines)
            lines, num_characters = [], 0
    if any(line.strip(" |") for line in lines):
        yield "\n".join(lines)
