"""What is said to an engine: the tokens of a query's chunks. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stream2llm_rag.simulation.trace import Query


@dataclass(frozen=True, slots=True)
class Script:
    """``chunks`` holds the token ids that each chunk of the query brings."""

    query: Query
    chunks: tuple[list[int], ...]

    def prompt(self, index: int) -> list[int]:
        """The whole prompt after chunk ``index``."""
        return [token for number, num_tokens in self.query.pieces(index) for token in self.chunks[number][:num_tokens]]

    @property
    def final_prompt(self) -> list[int]:
        """The prompt that is answered."""
        return self.prompt(len(self.chunks) - 1)


def write_scripts(trace: Iterable[Query], vocabulary: range, salt: str = "") -> list[Script]:
    """The scripts of ``trace``, with token ids from ``vocabulary``.

    The tokens of a chunk follow from ``salt``, the query's id and the chunk's number alone: random, so that no two queries
    share a block, and the same in every run and for every way.
    """
    return [_script(query, vocabulary, salt) for query in trace]


def _script(query: Query, vocabulary: range, salt: str) -> Script:
    return Script(
        query,
        tuple(
            _tokens(f"{salt}/{query.query_id}/{number}", chunk.num_tokens, vocabulary)
            for number, chunk in enumerate(query.chunks)
        ),
    )


def _tokens(name: str, num_tokens: int, vocabulary: range) -> list[int]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest())
    found: list[int] = np.random.default_rng(seed).integers(vocabulary.start, vocabulary.stop, num_tokens).tolist()
    return found
