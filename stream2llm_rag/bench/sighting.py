"""What is seen of a request while it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.simulation.records import RequestRecord
from stream2llm_rag.simulation.trace import Query


@dataclass(slots=True)
class Sighting:
    """Collects what the engine core says of one request and which tokens came of it, for its :class:`RequestRecord`.

    ``started_s`` is when the round began, by the clock of the core's records (CLOCK_MONOTONIC); all else counts from there.
    """

    query: Query
    started_s: float
    token_ids: list[int] = field(default_factory=list)
    _first_token_s: float = math.inf
    _finished_s: float = math.inf
    _num_computed: int = 0
    _num_cached: int = 0
    _num_invalidated: int = 0
    _num_evicted: int = 0
    _num_evictions: int = 0
    _num_discarded: int = 0
    _num_held: int = 0
    _num_held_at_final: int = 0

    def take(self, record: StepRecord) -> None:
        """Count one record of the core. RESUMED stands for all that came from the prefix cache."""
        match record.kind:
            case StepKind.COMPUTED:
                self._num_computed += record.num_tokens
                self._num_held += record.num_tokens
            case StepKind.RESUMED:
                self._num_cached += record.num_tokens
                self._num_held += record.num_tokens
            case StepKind.EVICTED:
                self._num_evictions += 1
                self._num_evicted += record.num_tokens
                self._num_held -= record.num_tokens
            case StepKind.INVALIDATED:
                self._num_invalidated += record.num_tokens
                self._num_held -= record.num_tokens
        if record.ended_s - self.started_s <= self.query.final_s:
            self._num_held_at_final = self._num_held

    def replaced(self, num_kept: int) -> None:
        """The request makes way for another with a new prompt, which keeps the first ``num_kept`` tokens of its own.

        What the other finds of them in the prefix cache counts as cached, not as overlap.
        """
        self._num_invalidated += max(0, self._num_held - num_kept)
        self._num_held = self._num_held_at_final = 0

    def discard(self, num_tokens: int) -> None:
        """Count tokens that were sampled before the final context."""
        self._num_discarded += num_tokens

    def take_tokens(self, token_ids: list[int], at_s: float) -> None:
        """Note tokens of the answer, which came ``at_s`` seconds after the round began."""
        if token_ids and not self.token_ids:
            self._first_token_s = at_s
        self.token_ids += token_ids
        if len(self.token_ids) >= self.query.num_output_tokens:
            self._finished_s = min(self._finished_s, at_s)

    def record(self) -> RequestRecord:
        """What became of the request so far."""
        return RequestRecord(
            query_id=self.query.query_id,
            arrival_s=self.query.arrival_s,
            final_s=self.query.final_s,
            num_prompt_tokens=self.query.num_prompt_tokens,
            first_token_s=self._first_token_s,
            finished_s=self._finished_s,
            num_output_tokens=len(self.token_ids),
            num_computed=self._num_computed,
            num_overlap=min(max(0, self._num_held_at_final), _num_kept_by_final(self.query)),
            num_cached=self._num_cached,
            num_invalidated=self._num_invalidated,
            num_evicted=self._num_evicted,
            num_evictions=self._num_evictions,
            num_discarded=self._num_discarded,
        )


def _num_kept_by_final(query: Query) -> int:
    """How many tokens of the final prompt were there before its last chunk."""
    return query.num_prompt_tokens - query.chunks[-1].num_tokens
