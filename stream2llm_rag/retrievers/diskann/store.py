"""The documents of an index, in SQLite: read by id, whatever size they have together."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import IndexFormatError, InvalidInputError

_CREATE = "CREATE TABLE documents (id INTEGER PRIMARY KEY, source TEXT NOT NULL, title TEXT, text TEXT NOT NULL, metadata TEXT)"
_INSERT = "INSERT INTO documents VALUES (?, ?, ?, ?, ?)"
_SELECT = "SELECT id, source, title, text, metadata FROM documents WHERE id IN (SELECT value FROM json_each(?))"


def write_documents(path: Path, ids: Sequence[int], documents: Iterable[Document]) -> None:
    """Write ``documents`` under their ``ids`` into a new file. InvalidInputError where one cannot be stored."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_CREATE)
        database.executemany(_INSERT, (_row(id_, document) for id_, document in zip(ids, documents, strict=True)))


class DocumentStore:
    """Reads documents by id, from any thread: each call opens the file, which takes a tenth of a millisecond."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"

    def read(self, ids: Sequence[int]) -> list[Document]:
        """The documents of ``ids``, in that order. IndexFormatError where one is missing, or the file is damaged."""
        try:
            with closing(sqlite3.connect(self._uri, uri=True)) as database:
                rows = {row[0]: row[1:] for row in database.execute(_SELECT, [json.dumps(list(ids))])}
            return [_document(rows[id_]) for id_ in ids]
        except KeyError as error:
            raise IndexFormatError(f"{self._path}: it has no document {error}. The file is from another index.") from error
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise IndexFormatError(f"{self._path}: documents cannot be read: {error}. Build the index again.") from error

    def count(self) -> int:
        """How many documents there are."""
        try:
            with closing(sqlite3.connect(self._uri, uri=True)) as database:
                return int(database.execute("SELECT count(*) FROM documents").fetchone()[0])
        except sqlite3.Error as error:
            raise IndexFormatError(f"{self._path}: documents cannot be read: {error}. Build the index again.") from error


def _row(id_: int, document: Document) -> tuple[Any, ...]:
    try:
        metadata = json.dumps(dict(document.metadata)) if document.metadata else None
        for text in (document.text, document.source, document.title or ""):
            text.encode()  # SQLite takes no half of a surrogate pair, such as stands for odd bytes in a file's name
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Document {document.source!r} cannot be stored as UTF-8 and JSON: {error}") from error
    return int(id_), document.source, document.title, document.text, metadata


def _document(row: Sequence[Any]) -> Document:
    source, title, text, metadata = row
    return Document(text, source, title, metadata=json.loads(metadata) if metadata else {})
