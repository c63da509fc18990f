"""Where what happens to one request of a round is reported to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream2llm_rag.bench.pace import Pace, StallWatch
from stream2llm_rag.bench.sighting import Sighting
from stream2llm_rag.bench.steps import StepLog
from stream2llm_rag.engine.feedback import StepKind, StepRecord


@dataclass(frozen=True, slots=True)
class Observer:
    """Of one request; ``watch`` and ``log`` are the round's."""

    sighting: Sighting
    pace: Pace
    watch: StallWatch
    log: StepLog

    def take(self, record: StepRecord) -> None:
        """The core did something for the request."""
        self.sighting.take(record)
        self.log.take(record)
        if record.kind is StepKind.COMPUTED:
            self.watch.saw_progress(self.pace.now())

    def replaced(self, num_kept: int) -> None:
        """The request makes way for one with a new prompt, as :meth:`Sighting.replaced` says."""
        self.sighting.replaced(num_kept)

    def answer(self, token_ids: Sequence[int]) -> None:
        """Tokens of the answer came."""
        now_s = self.pace.now()
        self.sighting.take_tokens(list(token_ids), now_s)
        self.watch.saw_progress(now_s)

    def discard(self, token_ids: Sequence[int]) -> None:
        """Tokens came that are not of the answer."""
        self.sighting.discard(len(token_ids))
        self.watch.saw_progress(self.pace.now())

    def end(self) -> None:
        """Nobody waits for it any more."""
        self.watch.saw_end(self.sighting.query.query_id)
