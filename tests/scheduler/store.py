"""A KV cache that knows what it holds: every slot keeps the digest of the token prefix that was computed there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream2llm_rag.engine.swap.books import StepCopies

Digest = int
EMPTY_PREFIX: Digest = 0x5EED


class Violation(AssertionError):  # noqa: N818 - what the scheduler did, not what went wrong in the test
    """The scheduler broke a rule that a worker, its KV cache or its users rely on."""


def extended(prefix: Digest, token: int) -> Digest:
    return hash((prefix, token))


def digests(tokens: Sequence[int], prefix: Digest = EMPTY_PREFIX) -> list[Digest]:
    """Of each prefix of ``tokens`` that is not empty, shortest first."""
    return list(accumulate(tokens, extended, initial=prefix))[1:]


def as_block_hash(prefix: Digest) -> bytes:
    return prefix.to_bytes(8, "little", signed=True)


def as_digest(block_hash: bytes) -> Digest:
    return int.from_bytes(block_hash[:8], "little", signed=True)


def block_hasher(block_size: int) -> Callable[[Any], list[bytes]]:
    """A request block hasher for vLLM whose hash of a block is the digest of the prefix that ends with it."""

    def new_hashes(request: Any) -> list[bytes]:
        start = len(request.block_hashes) * block_size
        stop = len(request._all_token_ids) // block_size * block_size
        before = as_digest(request.block_hashes[-1]) if start else EMPTY_PREFIX
        return [as_block_hash(d) for d in digests(request._all_token_ids[start:stop], before)[block_size - 1 :: block_size]]

    return new_hashes


@dataclass(frozen=True, slots=True)
class Row:
    """What a worker computes for one request in one step: ``tokens[num_computed:]``, with all of ``tokens`` as context."""

    request_id: str
    tokens: Sequence[int]
    num_computed: int
    block_ids: Sequence[int]


@dataclass(slots=True)
class KvStore:
    """Digests by block and slot; None where nothing was ever written."""

    num_blocks: int
    block_size: int
    num_host_slots: int = 0
    _slots: list[list[Digest | None]] = field(init=False)
    _host: list[list[Digest | None] | None] = field(init=False)
    _parents: dict[Digest, Digest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = [[None] * self.block_size for _ in range(self.num_blocks)]
        self._host = [None] * self.num_host_slots

    def copy(self, copies: StepCopies) -> None:
        """Make a step's copies, out and then in. Raise for a slot that is written twice, or read before it was written."""
        outs = [*copies.early_outs, *copies.outs]
        if len({copy.slot for copy in outs}) < len(outs) or len({copy.block for copy in copies.ins}) < len(copies.ins):
            raise Violation(f"something is written twice in one step: {copies}")
        for copy in outs:
            self._host[copy.slot] = list(self._slots[copy.block])
        for copy in copies.ins:
            content = self._host[copy.slot]
            if content is None:
                raise Violation(f"slot {copy.slot} is read before it is written")
            self._slots[copy.block] = list(content)

    def check_host(
        self, owner: str, prefix: Sequence[Digest], places: Sequence[tuple[int | None, int | None]], first: int
    ) -> None:
        """Raise unless ``places``, each a block or else a slot, hold ``prefix`` from its block ``first`` on."""
        for position in range(first * self.block_size, len(prefix)):
            index, offset = divmod(position, self.block_size)
            if index - first >= len(places):
                raise Violation(f"{owner} keeps position {position} beyond its {len(places)} blocks")
            block, slot = places[index - first]
            row = self._host[slot] if slot is not None else self._slots[block] if block is not None else None
            if row is None or row[offset] != prefix[position]:
                raise Violation(f"{owner} keeps position {position} in block {block} or slot {slot}, which has other content")

    def compute(self, rows: Sequence[Row]) -> dict[str, Digest]:
        """Run one batch. Returns the digest of each request's last token.

        As on a GPU, a layer writes the KV of the whole batch before it attends, so that a request may read in the same step
        what another one computes.
        """
        prefixes = {row.request_id: digests(row.tokens) for row in rows}
        written: dict[tuple[int, int], Row] = {}
        for row in rows:
            self._write(row, prefixes[row.request_id], written)
        for row in rows:
            self.check(row.request_id, prefixes[row.request_id], row.block_ids, "reads")
        return {request_id: prefix[-1] for request_id, prefix in prefixes.items()}

    def check(self, owner: str, prefix: Sequence[Digest], block_ids: Sequence[int], verb: str) -> None:
        """Raise unless ``block_ids`` hold ``prefix``."""
        for position, expected in enumerate(prefix):
            index, offset = divmod(position, self.block_size)
            if index >= len(block_ids):
                raise Violation(f"{owner} {verb} position {position} beyond its {len(block_ids)} blocks")
            found = self._slots[block_ids[index]][offset]
            if found != expected:
                what = "never written" if found is None else "of another prefix"
                raise Violation(f"{owner} {verb} position {position} in block {block_ids[index]}, which is {what}")

    def check_hashed(self, block_id: int, block_hash: bytes) -> None:
        """Raise unless the block holds exactly the tokens that its hash says."""
        expected = as_digest(block_hash)
        for found in reversed(self._slots[block_id]):
            if found != expected:
                raise Violation(f"block {block_id} is found in the prefix cache by a hash of other content than it holds")
            expected = self._parents[found]

    def _write(self, row: Row, prefix: Sequence[Digest], written: dict[tuple[int, int], Row]) -> None:
        for position in range(row.num_computed, len(prefix)):
            index, offset = divmod(position, self.block_size)
            if index >= len(row.block_ids):
                raise Violation(f"{row.request_id} computes position {position} beyond its {len(row.block_ids)} blocks")
            slot = (row.block_ids[index], offset)
            if slot[0] == 0:
                raise Violation(f"{row.request_id} writes into the null block")
            other = written.setdefault(slot, row)
            if other is not row:
                raise Violation(f"{row.request_id} and {other.request_id} write slot {slot} in one step")
            self._slots[slot[0]][offset] = prefix[position]
            self._parents[prefix[position]] = prefix[position - 1] if position else EMPTY_PREFIX
