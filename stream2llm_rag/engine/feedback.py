"""What the engine core knows of streams, on its way to the front end: one channel that timeline, metrics and results share.

The scheduler collects records during a step; they ride in the step's scheduler statistics, in the one field of them that takes
any mapping (``SchedulerStats.kv_connector_stats``, vllm/v1/metrics/stats.py), under a key of ours that the front end takes out
again before vLLM's own loggers see it. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

logger = logging.getLogger(__name__)

STATS_KEY = "stream2llm"


class StepKind(StrEnum):
    """What happened to a stream's KV."""

    COMPUTED = "computed"
    EVICTED = "evicted"
    SWAPPED = "swapped"
    RESUMED = "resumed"
    RECEIVED = "received"
    INVALIDATED = "invalidated"
    WAITED = "waited"
    IDLE = "idle"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One thing that happened to one stream, with the number of tokens that it is about.

    COMPUTED: prefilled by one step. EVICTED, INVALIDATED: those whose KV was lost. SWAPPED, beside EVICTED: it is kept in host
    memory. RESUMED: those that came back with the stream after an eviction without being computed. WAITED, from ``started_s``
    to ``ended_s`` it had work and did not run, and IDLE, it had none: those that have KV at the end of that time, when the
    record is made. RECEIVED, the end of a hand-over from another engine: those whose KV came, none when that failed. FINAL, the
    arrival of the final context: those with valid KV that this request computed itself, prefix-cache hits left out.
    """

    request_id: str
    kind: StepKind
    started_s: float
    ended_s: float
    num_tokens: int


@dataclass(slots=True)
class EngineCounters:
    """Of one engine core: first the levels after the last step, then counts since start.

    Partial requests are still open to operations, complete ones are not. Each request is running, waiting (has work that no
    step took) or idle (has none). ``num_used_blocks`` are held by any request, ``num_idle_blocks`` by idle ones. Evictions are
    planned, of all KV of a request or of its tail; preemptions are vLLM's own, when a step needs more than was planned. Of both
    together ``num_swap_evictions`` had their KV kept in host memory, which has ``num_host_slots`` for a block each;
    ``num_blocks_out`` and ``num_blocks_in`` were copied there and back. Refused
    operations are forged, malformed, or too long or too late for their stream; refused grants are those that vLLM did not
    follow. ``planning_s`` is what ``num_steps`` steps took beyond vLLM's own.
    """

    num_partial: int = 0
    num_complete: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_idle: int = 0
    num_idle_blocks: int = 0
    num_used_blocks: int = 0
    num_host_slots: int = 0
    num_used_host_slots: int = 0
    num_whole_evictions: int = 0
    num_tail_evictions: int = 0
    num_preemptions: int = 0
    num_swap_evictions: int = 0
    num_blocks_out: int = 0
    num_blocks_in: int = 0
    num_ops: int = 0
    num_ops_refused: int = 0
    num_grants_refused: int = 0
    num_steps: int = 0
    planning_s: float = 0.0

    @property
    def num_evictions(self) -> int:
        """Planned ones, of either kind."""
        return self.num_whole_evictions + self.num_tail_evictions


@dataclass(slots=True)
class CoreFeedback:
    """The core's end: collects, and hands over once a step. Bounded by what one step can touch."""

    counters: EngineCounters = field(default_factory=EngineCounters)
    _records: list[StepRecord] = field(default_factory=list)

    def record(self, request_id: str, kind: StepKind, num_tokens: int, started_s: float, ended_s: float | None = None) -> None:
        """Note one record; without ``ended_s`` it is an instant."""
        self._records.append(StepRecord(request_id, kind, started_s, started_s if ended_s is None else ended_s, num_tokens))

    def drain(self) -> dict[str, Any]:
        """What has collected, as values that msgpack carries."""
        records, self._records = self._records, []
        rows = [(r.request_id, str(r.kind), r.started_s, r.ended_s, r.num_tokens) for r in records]
        return {"counters": asdict(self.counters), "records": rows}


class FeedbackHub:
    """The front end's end: hands each record to the session that it is about.

    A record of a request that nobody listens for (it was aborted meanwhile) is dropped.
    """

    def __init__(self) -> None:
        self.counters: dict[int, EngineCounters] = {}
        self._listeners: dict[str, Callable[[StepRecord], None]] = {}

    def listen(self, request_id: str, listener: Callable[[StepRecord], None]) -> None:
        """Call ``listener`` with each record of the request, until :meth:`forget`."""
        self._listeners[request_id] = listener

    def forget(self, request_id: str) -> None:
        """Stop listening."""
        self._listeners.pop(request_id, None)

    def receive(self, payload: Mapping[str, Any], engine_index: int = 0) -> None:
        """Take what :meth:`CoreFeedback.drain` of engine core ``engine_index`` gave."""
        self.counters[engine_index] = EngineCounters(**payload["counters"])
        for request_id, kind, started_s, ended_s, num_tokens in payload["records"]:
            listener = self._listeners.get(request_id)
            if listener is None:
                continue
            try:
                listener(StepRecord(request_id, StepKind(kind), started_s, ended_s, num_tokens))
            except Exception:  # this runs inside vLLM's output handler, whose end is the end of every stream
                logger.exception("a listener for %s failed; it is not called again", request_id)
                self.forget(request_id)
