"""A workload: questions, and when retrieval brought how many tokens for each. Values, and their JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from stream2llm_rag.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of retrieval, ``after_s`` seconds after the query's arrival.

    It brings ``num_tokens``, which may be none. In append mode they go behind the prompt so far. An update names ``num_kept``:
    the first that many tokens of the prompt stay, all else goes, and the new ones follow.
    """

    after_s: float
    num_tokens: int
    num_kept: int | None = None

    def __post_init__(self) -> None:
        _require(_is_time(self.after_s), f"after_s is {self.after_s!r}. Write seconds since the query's arrival, 0 or more.")
        _require(_is_count(self.num_tokens), f"num_tokens is {self.num_tokens!r}. Write a whole number, 0 or more.")
        is_kept_valid = self.num_kept is None or _is_count(self.num_kept)
        _require(is_kept_valid, f"num_kept is {self.num_kept!r}. Write how many tokens stay, or leave it out to append.")


@dataclass(frozen=True, slots=True)
class Query:
    """One question. Its last chunk brings the final context and the question; then ``num_output_tokens`` are generated.

    A query of one chunk is a plain request, sent whole when that chunk comes.
    """

    query_id: str
    arrival_s: float
    chunks: tuple[Chunk, ...]
    num_output_tokens: int = 1

    def __post_init__(self) -> None:
        _require(isinstance(self.query_id, str) and self.query_id != "", f"query_id is {self.query_id!r}. Write a name.")
        _require(_is_time(self.arrival_s), f"arrival_s is {self.arrival_s!r}. Write seconds since the trace began, 0 or more.")
        _require(bool(self.chunks), "chunks is empty. Write one or more.")
        is_output_valid = _is_count(self.num_output_tokens) and self.num_output_tokens > 0
        _require(is_output_valid, f"num_output_tokens is {self.num_output_tokens!r}. Write a whole number, 1 or more.")
        for index, (last, chunk) in enumerate(pairwise(self.chunks), start=1):
            is_in_order = last.after_s <= chunk.after_s
            _require(is_in_order, f"chunks[{index}].after_s is {chunk.after_s}, after {last.after_s}. Write them in order.")
        for index, (length, chunk) in enumerate(self._lengths_before()):
            has_kept = chunk.num_kept is None or chunk.num_kept <= length
            _require(has_kept, f"chunks[{index}].num_kept is {chunk.num_kept}, but the prompt has {length} tokens by then.")
            is_emptied = length > 0 and chunk.num_kept == 0 and chunk.num_tokens == 0
            _require(not is_emptied, f"chunks[{index}] leaves the prompt empty. Write num_kept or num_tokens above 0.")
        last = self.chunks[-1]
        _require(last.num_tokens > 0, f"chunks[{len(self.chunks) - 1}] is the last and brings no tokens. Write the question's.")

    @property
    def final_s(self) -> float:
        """When the final context comes, in seconds since the trace began."""
        return self.arrival_s + self.chunks[-1].after_s

    @property
    def is_update(self) -> bool:
        """Whether any chunk replaces what came before."""
        return any(chunk.num_kept is not None for chunk in self.chunks)

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """How many tokens the prompt has after each chunk."""
        lengths, length = [], 0
        for chunk in self.chunks:
            length = (length if chunk.num_kept is None else chunk.num_kept) + chunk.num_tokens
            lengths.append(length)
        return tuple(lengths)

    @property
    def num_prompt_tokens(self) -> int:
        """How many tokens the final prompt has."""
        return self.prompt_lengths[-1]

    @property
    def num_replaced(self) -> int:
        """How many tokens its updates take out of the prompt, in sum: what they invalidate where all had been computed."""
        return sum(length - chunk.num_kept for length, chunk in self._lengths_before() if chunk.num_kept is not None)

    def _lengths_before(self) -> Iterator[tuple[int, Chunk]]:
        """Each chunk, with the tokens of the prompt that it comes to."""
        return zip((0, *self.prompt_lengths), self.chunks, strict=False)

    def pieces(self, index: int) -> tuple[tuple[int, int], ...]:
        """What the prompt consists of after chunk ``index``: (chunk, how many of its tokens, from its first), in order.

        The content of a prompt follows from it: equal pieces of one query are equal tokens, and queries share none.
        """
        pieces: list[tuple[int, int]] = []
        for number, chunk in enumerate(self.chunks[: index + 1]):
            if chunk.num_kept is not None:
                pieces = _cut(pieces, chunk.num_kept)
            if chunk.num_tokens:
                pieces.append((number, chunk.num_tokens))
        return tuple(pieces)


Trace: TypeAlias = tuple[Query, ...]


def check_trace(trace: Sequence[Query]) -> None:
    """Raise :class:`InvalidInputError` unless there are queries and each has an id of its own."""
    _require(bool(trace), "the trace has no queries. Write one or more.")
    seen: set[str] = set()
    for query in trace:
        _require(query.query_id not in seen, f"two queries are called {query.query_id!r}. Write an id of its own for each.")
        seen.add(query.query_id)


def write_trace(path: Path, trace: Sequence[Query]) -> None:
    """Write the trace as JSON lines, a query a line. The same trace is the same file, byte for byte."""
    check_trace(trace)
    path.write_text("".join(f"{json.dumps(_query_to_json(query))}\n" for query in trace), "utf-8")


def read_trace(path: Path) -> Trace:
    """Read what :func:`write_trace` wrote.

    Raises :class:`InvalidInputError`, which names line and field, for a file that cannot be read or is no trace.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the trace {path} cannot be read: {error}. Write a file of JSON lines.") from error
    trace = tuple(_read_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())
    try:
        check_trace(trace)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error
    return trace


def _query_to_json(query: Query) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "arrival_s": query.arrival_s,
        "num_output_tokens": query.num_output_tokens,
        "chunks": [_chunk_to_json(chunk) for chunk in query.chunks],
    }


def _chunk_to_json(chunk: Chunk) -> dict[str, Any]:
    fields = {"after_s": chunk.after_s, "num_tokens": chunk.num_tokens}
    return fields if chunk.num_kept is None else {**fields, "num_kept": chunk.num_kept}


def _read_line(path: Path, number: int, line: str) -> Query:
    try:
        return _query_from_json(json.loads(line))
    except (InvalidInputError, json.JSONDecodeError) as error:
        raise InvalidInputError(f"{path}, line {number}: {error}") from error


def _query_from_json(found: object) -> Query:
    fields = _fields(found, required=("query_id", "arrival_s", "chunks"), optional=("num_output_tokens",))
    chunks = fields.pop("chunks")
    _require(isinstance(chunks, list), f"chunks is {chunks!r}. Write a list of objects.")
    return Query(chunks=tuple(_chunk_from_json(index, chunk) for index, chunk in enumerate(chunks)), **fields)


def _chunk_from_json(index: int, found: object) -> Chunk:
    try:
        return Chunk(**_fields(found, required=("after_s", "num_tokens"), optional=("num_kept",)))
    except InvalidInputError as error:
        raise InvalidInputError(f"chunks[{index}]: {error}") from error


def _fields(found: object, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise InvalidInputError(f"{found!r} is no object. Write one with {', '.join(required)}.")
    missing, unknown = set(required) - found.keys(), found.keys() - {*required, *optional}
    _require(not missing, f"{', '.join(sorted(missing))} is missing.")
    _require(not unknown, f"{', '.join(sorted(unknown))} is unknown. Write only {', '.join((*required, *optional))}.")
    return dict(found)


def _cut(pieces: Sequence[tuple[int, int]], num_kept: int) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for number, num_tokens in pieces:
        if num_kept <= 0:
            break
        kept.append((number, min(num_tokens, num_kept)))
        num_kept -= num_tokens
    return kept


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidInputError(message)
