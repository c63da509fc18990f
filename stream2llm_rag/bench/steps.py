"""How long the steps of an engine took, for which work. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stream2llm_rag.engine.feedback import StepKind, StepRecord


@dataclass(frozen=True, slots=True)
class Step:
    """One step of prefill: (new tokens, tokens of KV before them) of each request in it, and its seconds.

    It began ``gap_s`` seconds after the last one had ended, or as soon as it had.
    """

    items: tuple[tuple[int, int], ...]
    seconds: float
    gap_s: float = 0.0


class StepLog:
    """Puts the records of all requests of one engine core together again into its steps."""

    def __init__(self) -> None:
        self._num_held: defaultdict[str, int] = defaultdict(int)
        self._items: defaultdict[tuple[float, float], list[tuple[int, int]]] = defaultdict(list)

    def take(self, record: StepRecord) -> None:
        """Note one record, in the order in which the core made them."""
        match record.kind:
            case StepKind.COMPUTED:
                context = max(0, self._num_held[record.request_id])
                self._items[record.ended_s, record.started_s].append((record.num_tokens, context))
                self._num_held[record.request_id] += record.num_tokens
            case StepKind.RESUMED:
                self._num_held[record.request_id] += record.num_tokens
            case StepKind.EVICTED | StepKind.INVALIDATED:
                self._num_held[record.request_id] -= record.num_tokens

    def steps(self) -> list[Step]:
        """The steps so far, by their end.

        Under asynchronous scheduling one begins before the last one has ended: from then on its time counts.
        """
        found, last_ended_s = [], min((started_s for _, started_s in self._items), default=0.0)
        for (ended_s, started_s), items in sorted(self._items.items()):
            seconds, gap_s = ended_s - max(started_s, last_ended_s), max(0.0, started_s - last_ended_s)
            found.append(Step(tuple(items), seconds, gap_s))
            last_ended_s = ended_s
        return found
