"""What evictions return to the pool, counted before they are carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

from stream2llm_rag.engine.policy.base import LiveRequest


class Block(Protocol):
    """A block of the KV cache, as vLLM's ``KVCacheBlock`` tells of it."""

    @property
    def block_id(self) -> int:
        """Its number in the pool."""

    @property
    def ref_cnt(self) -> int:
        """How many requests hold it."""


BlockTable: TypeAlias = Sequence[Block]


class Ledger:
    """Cuts the ends off block tables, on paper: a block comes back when the last request that holds it lets go of it.

    ``table`` gives the blocks that a request holds, by its id; it is asked only for requests that lose some.
    """

    def __init__(self, table: Callable[[str], BlockTable]) -> None:
        self._table = table
        self._tables: dict[str, BlockTable] = {}
        self._kept: dict[str, int] = {}
        self._released: dict[int, int] = {}
        self._claimed: set[int] = set()

    def num_kept(self, request: LiveRequest) -> int:
        """How many blocks the request still holds."""
        return self._kept.get(request.request_id, request.num_blocks)

    def has_lost(self, request: LiveRequest) -> bool:
        """Whether it holds less than it did."""
        return self._kept.get(request.request_id, request.num_blocks) < request.num_blocks

    def cut(self, request: LiveRequest) -> int:
        """Take the request's last block away. Returns how many blocks that frees: one, or none if others hold it."""
        num_kept = self._kept[request.request_id] = self.num_kept(request) - 1
        block = self._blocks(request)[num_kept]
        was_held = self._is_held(block)
        self._released[block.block_id] = self._released.get(block.block_id, 0) + 1
        return int(was_held and not self._is_held(block))

    def give_back(self, request: LiveRequest) -> int:
        """Undo the last :meth:`cut`. Returns how many blocks are held again for it."""
        num_kept = self._kept[request.request_id]
        block = self._blocks(request)[num_kept]
        self._kept[request.request_id] = num_kept + 1
        was_held = self._is_held(block)
        self._released[block.block_id] -= 1
        return int(self._is_held(block) and not was_held)

    def num_held(self, blocks: Iterable[Block]) -> int:
        """How many of ``blocks`` somebody still holds."""
        return sum(map(self._is_held, blocks))

    def claim(self, blocks: Iterable[Block]) -> None:
        """Note that a request which gets to run will hold these blocks of its prefix-cache hit, whoever lets go of them."""
        self._claimed.update(block.block_id for block in blocks)

    def _is_held(self, block: Block) -> bool:
        return block.block_id in self._claimed or block.ref_cnt > self._released.get(block.block_id, 0)

    def _blocks(self, request: LiveRequest) -> BlockTable:
        if request.request_id not in self._tables:
            self._tables[request.request_id] = self._table(request.request_id)
        return self._tables[request.request_id]
