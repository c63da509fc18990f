"""Which documents of a search that is under way will stay: a decision over what the search has seen. Pure.

A document of the current top k leaves the final one only if enough others overtake it. Its *slack* is how many places are left
below it, less the number of known candidates that are expected to turn out nearer; its *age* is the hops it has held its place
since. A search that has read little knows few candidates, so both say nothing before some *progress*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Emit: TypeAlias = Literal["stable", "eager", "final"]
EMITS: tuple[Emit, ...] = get_args(Emit)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a search has found so far, nearest first: at most k documents.

    ``distances`` are exact, in the metric of the index. ``slack`` counts places, ``age`` hops. ``progress`` is the share of the
    expected reads that are done, 1 at the end. ``is_final``: this is the whole result.
    """

    ids: tuple[int, ...]
    distances: tuple[float, ...]
    slack: tuple[float, ...]
    age: tuple[int, ...]
    num_reads: int
    num_hops: int
    progress: float
    is_final: bool


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A document is stable from this slack, this age, and this progress of the search on."""

    slack: float = 1.0
    age: int = 3
    progress: float = 0.25

    def stable_ids(self, snapshot: Snapshot) -> list[int]:
        """Ids of the documents of ``snapshot`` that will most likely stay, nearest first; all of them at the end."""
        if snapshot.is_final:
            return list(snapshot.ids)
        if snapshot.progress < self.progress:
            return []
        return [
            id_
            for id_, slack, age in zip(snapshot.ids, snapshot.slack, snapshot.age, strict=True)
            if slack >= self.slack and age >= self.age
        ]


class Gate:
    """Lets through what may be shown of one search: the ids to show, when they change.

    ``stable`` shows documents as soon as they are stable, and keeps them for as long as they are among the top k (what has left
    that cannot come back). ``eager`` shows the whole top k whenever it changes, from a progress of
    ``thresholds.progress`` on. ``final`` shows nothing before the end.
    """

    def __init__(self, thresholds: Thresholds, emit: Emit = "stable") -> None:
        self._thresholds = thresholds
        self._emit = emit
        self._shown: tuple[int, ...] = ()

    def pass_on(self, snapshot: Snapshot) -> tuple[int, ...] | None:
        """The ids to show now, nearest first; None where those shown last are still the ones, or none may be shown yet."""
        wanted = self._wanted(snapshot)
        if snapshot.is_final:
            return tuple(wanted)
        if set(wanted) == set(self._shown):
            return None
        self._shown = tuple(wanted)
        return self._shown

    def _wanted(self, snapshot: Snapshot) -> Sequence[int]:
        if snapshot.is_final:
            return snapshot.ids
        if self._emit == "final":
            return ()
        if self._emit == "eager":
            return snapshot.ids if snapshot.progress >= self._thresholds.progress else ()
        wanted = {*self._thresholds.stable_ids(snapshot), *self._shown}
        return [id_ for id_ in snapshot.ids if id_ in wanted]
