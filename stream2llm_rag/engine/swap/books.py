"""What the KV of preempted requests lies in: blocks of the device that nobody has taken yet, and slots of host memory. Pure.

A block that a request gives up keeps its content until the pool hands it to somebody. Only then is it copied out: many a victim
is back before. So a victim's record begins as a list of device blocks, and turns into host slots from the end, since the pool
hands out a request's last blocks first. Where slots are short the least valuable record, by the time to compute it again for
each block, gives up its last ones. Nothing here can fail for want of room.

Copies are made in the order out, then in, before a step's forward pass: a slot that a step reads is free from the next one on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Copy:
    """Between a block of the device and a slot of host memory."""

    block: int
    slot: int


@dataclass(frozen=True, slots=True)
class StepCopies:
    """What one step copies, in this order. What ``early_outs`` copy no step in flight writes."""

    early_outs: list[Copy]
    outs: list[Copy]
    ins: list[Copy]


@dataclass(slots=True, eq=False)
class _Held:
    """One block's worth of KV: in a device block that nobody has taken yet, or else in a host slot."""

    record: HostRecord
    block: int | None
    is_early: bool
    slot: int | None = None
    is_gone: bool = False


@dataclass(slots=True, eq=False)
class HostRecord:
    """The KV of one request from token ``start`` of its prompt, which begins block ``first``, up to token ``end``.

    ``value`` is what each block is worth: seconds to compute it again.
    """

    request_id: str
    first: int
    start: int
    end: int
    value: float = 0.0
    num_slots: int = 0
    _held: list[_Held] = field(default_factory=list)


class HostBooks:
    """Keeps the books on ``num_slots`` host slots of ``block_size`` tokens each.

    ``recompute_s`` values a record: seconds to compute (so many tokens, behind so many others).
    """

    def __init__(self, num_slots: int, block_size: int, recompute_s: Callable[[int, int], float]) -> None:
        self.num_slots = num_slots
        self._block_size = block_size
        self._recompute_s = recompute_s
        self._free = list(range(num_slots - 1, -1, -1))
        self._read: list[int] = []  # by the copies in of this step: free from the next one on
        self._records: dict[str, HostRecord] = {}
        self._on_device: dict[int, list[_Held]] = {}
        self._outs: dict[int, tuple[int, bool]] = {}  # of this step: slot -> block, and whether it is early
        self._ins: list[Copy] = []
        self._least: HostRecord | None = None  # of those with slots the least valuable, as last looked for

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._records)

    @property
    def num_promised_slots(self) -> int:
        """Slots that hold something, are being read, or will be wanted when the pool hands out the blocks that are held."""
        return sum(len(record._held) for record in self._records.values()) + len(self._read)

    @property
    def num_used_slots(self) -> int:
        """Slots that hold something, or are being read."""
        return self.num_slots - len(self._free)

    def get(self, request_id: str) -> HostRecord | None:
        """What is held of the request."""
        return self._records.get(request_id)

    # ------------------------------------------------------------------ what is held

    def keep(self, request_id: str, num_kept: int, num_tokens: int, table: Sequence[int], *, in_flight: bool = False) -> None:
        """Hold what a request gives up: all but ``num_kept`` blocks at the front of its ``table``, which has ``num_tokens``.

        What is held of it already stays where the two join: after several cuts of its tail, the parts are one. ``in_flight``: a
        step may still be writing them.
        """
        earlier = self._records.pop(request_id, None)
        record = HostRecord(request_id, num_kept, num_kept * self._block_size, num_tokens)
        rest: list[_Held] = []
        if earlier is not None:
            rest = self._rest_of(earlier, record)
        num_blocks = self._num_blocks(num_tokens) if not rest else num_tokens // self._block_size
        for block in table[num_kept:num_blocks]:
            held = _Held(record, block, is_early=not in_flight)
            self._on_device.setdefault(block, []).append(held)
            record._held.append(held)
        for held in rest:
            held.record = record
            record.num_slots += held.slot is not None
        record._held += rest
        record.value = self._recompute_s(record.end - record.start, record.start) / max(1, len(record._held))
        if record._held:
            self._records[request_id] = record
            self._compare(record)

    def _rest_of(self, earlier: HostRecord, record: HostRecord) -> list[_Held]:
        """Release of ``earlier`` what ``record`` has anew, or all if it does not join on. Returns the rest."""
        joint = record.end // self._block_size  # a block that is part full in the one may be full in the other
        joins = earlier.first <= joint and earlier.end > record.end
        num_again = joint - earlier.first if joins else len(earlier._held)
        for held in earlier._held[:num_again]:
            self._release(held)
        if joins:
            record.end = earlier.end
        return earlier._held[num_again:]

    def drop(self, request_id: str) -> None:
        """Hold nothing of the request any more: its slots are free at once."""
        record = self._records.get(request_id)
        if record is not None:
            self._shorten(record, record.start)

    def drop_all(self) -> None:
        """Hold nothing any more."""
        for request_id in list(self._records):
            self.drop(request_id)

    def trim(self, request_id: str, num_tokens: int) -> None:
        """Hold at most the first ``num_tokens`` of the request's prompt: what comes behind has changed."""
        record = self._records.get(request_id)
        if record is not None:
            self._shorten(record, num_tokens)

    # ------------------------------------------------------------------ what is copied

    def handed_out(self, blocks: Iterable[int]) -> None:
        """The pool hands out these blocks of the device: copy out what is held in them."""
        moving = [(block, held) for block in blocks for held in self._on_device.pop(block, ())]
        for _, held in moving:
            held.block = None
        for block, held in moving:
            if not held.is_gone:
                self._copy_out(block, held)

    def borrow(self, request_id: str, start: int, end: int) -> HostRecord | None:
        """Ready what is held of the request from token ``start`` on, up to ``end``: all of it in host slots.

        None: nothing of it can come back. Until :meth:`load` or :meth:`give_back` the record is the caller's, and loses nothing
        to those whose blocks the pool hands out meanwhile.
        """
        record = self._records.get(request_id)
        if record is None or not record.start <= start < min(end, record.end):
            return None
        self._shorten(record, end)
        del self._records[request_id]
        for held in record._held[start // self._block_size - record.first :]:
            if held.block is not None and not held.is_gone:
                block, held.block = held.block, None
                self._forget(block, held)
                self._copy_out(block, held)
        if record.end > start:
            return record
        self._shorten(record, record.start)
        return None

    def give_back(self, record: HostRecord) -> None:
        """Hold the record as before."""
        self._records[record.request_id] = record
        self._compare(record)

    def load(self, record: HostRecord, start: int, table: Sequence[int]) -> None:
        """Copy the record from token ``start`` on into the blocks of ``table``, and hold it no more."""
        for index, held in enumerate(record._held, record.first):
            if index >= start // self._block_size:
                assert held.slot is not None
                self._ins.append(Copy(table[index], held.slot))
                self._read.append(held.slot)
            else:
                self._release(held)

    def take_copies(self) -> StepCopies:
        """What this step copies. The next calls are about the next step."""
        taken = StepCopies([], [], self._ins)
        for slot, (block, is_early) in self._outs.items():
            (taken.early_outs if is_early else taken.outs).append(Copy(block, slot))
        self._outs, self._ins = {}, []
        self._free += self._read
        self._read = []
        return taken

    # ------------------------------------------------------------------ slots

    def _copy_out(self, block: int, held: _Held) -> None:
        slot = self._find_slot(held)
        if slot is not None:
            held.slot = slot
            held.record.num_slots += 1
            self._compare(held.record)
            self._outs[slot] = (block, held.is_early)

    def _find_slot(self, held: _Held) -> int | None:
        """A slot for ``held``. None: nothing is worth less than its record, which ends before it from now on."""
        while not self._free and not held.is_gone:
            least = self._find_least()
            self._pop(least if least is not None and least.value <= held.record.value else held.record)
        return None if held.is_gone else self._free.pop()

    def _find_least(self) -> HostRecord | None:
        """The least valuable record that has slots; all are looked at only when the last one found has or is none any more."""
        least = self._least
        if least is None or not least.num_slots or self._records.get(least.request_id) is not least:
            with_slots = (record for record in self._records.values() if record.num_slots)
            self._least = min(with_slots, key=lambda record: record.value, default=None)
        return self._least

    def _compare(self, record: HostRecord) -> None:
        if record.num_slots and self._least is not None and record.value < self._least.value:
            self._least = record

    def _shorten(self, record: HostRecord, end: int) -> None:
        """Hold of the record only what lies before token ``end``."""
        while record._held and record.first + len(record._held) > self._num_blocks(max(end, record.start)):
            self._pop(record)
        record.end = min(record.end, max(end, record.start))

    def _pop(self, record: HostRecord) -> None:
        """Give up the record's last block."""
        held = record._held.pop()
        held.is_gone = True
        record.end = min(record.end, record.start + len(record._held) * self._block_size)
        self._release(held)
        if not record._held and self._records.get(record.request_id) is record:
            del self._records[record.request_id]

    def _release(self, held: _Held) -> None:
        if held.block is not None:
            self._forget(held.block, held)
        elif held.slot is not None:
            held.record.num_slots -= 1
            self._outs.pop(held.slot, None)
            self._free.append(held.slot)
        held.block = held.slot = None

    def _forget(self, block: int, held: _Held) -> None:
        others = self._on_device[block]
        others.remove(held)
        if not others:
            del self._on_device[block]

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
