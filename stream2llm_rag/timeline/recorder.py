"""Takes down what happens while a question is being answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.timeline.events import MAX_TIME_S, Event, EventKind, Timeline

logger = logging.getLogger(__name__)

MAX_EVENTS = 20_000

# Once per question, and the figures hang on them: kept even when the recorder is full.
_MILESTONES = frozenset(
    {
        EventKind.RETRIEVAL_END,
        EventKind.RETRIEVAL_FAILED,
        EventKind.DEADLINE,
        EventKind.FINAL_CONTEXT,
        EventKind.FIRST_TOKEN,
        EventKind.DONE,
        EventKind.ABORTED,
    }
)
_KIND_OF = {"fetch": EventKind.FETCH, "skip": EventKind.SKIP}
_STEPS = frozenset({"retry", "list", "search"})  # kinds of events that stand for no page


class Recorder:
    """Collects the events of one question; any thread may record.

    ``arrived_at`` and every time that is passed in are seconds of :func:`time.monotonic`; what began before the question came
    is taken down from its arrival on. Holds ``max_events``: further ones are dropped, save the milestones (each kept once),
    and counted in the measure ``num_events_dropped``. ``listener`` is called with each event as it is
    recorded, kept or not, until it raises.
    """

    def __init__(
        self,
        question: str,
        mode: str,
        arrived_at: float,
        *,
        max_events: int = MAX_EVENTS,
        listener: Callable[[Event], None] | None = None,
    ) -> None:
        self._timeline = Timeline(question, mode, asked_at=time.time() - (time.monotonic() - arrived_at))
        self._arrived_at = arrived_at
        self._max_events = max_events
        self._listener = listener
        self._events: list[Event] = []
        self._milestones: dict[EventKind, Event] = {}
        self._num_dropped = 0

    def record(
        self,
        kind: EventKind,
        *,
        at: float | None = None,
        until: float | None = None,
        label: str = "",
        tokens: int | None = None,
        detail: str | None = None,
        num_kept: int | None = None,
    ) -> None:
        """Take down that ``kind`` happened ``at`` (now, where None) or from then ``until``.

        Raises :class:`~stream2llm_rag.errors.InvalidInputError` for an ``until`` before ``at`` and for times that are not
        finite. Of a milestone the first counts.
        """
        start_s = max(0.0, (time.monotonic() if at is None else at) - self._arrived_at)
        end_s = start_s if until is None else max(0.0, until - self._arrived_at)
        event = Event(kind, start_s, end_s, label, tokens, detail, num_kept)
        if kind in _MILESTONES:
            self._milestones.setdefault(kind, event)
        elif len(self._events) < self._max_events:
            self._events.append(event)
        else:
            self._num_dropped += 1
        if self._listener is not None:
            self._tell(self._listener, event)

    def _tell(self, listener: Callable[[Event], None], event: Event) -> None:
        try:
            listener(event)
        except Exception:  # whoever watches must not cost the answer
            logger.exception("a listener of the timeline failed; it is not called again")
            self._listener = None

    def record_retrieval(self, event: RetrievalEvent) -> None:
        """Take down what a retriever reports, and the steps that led to it; kinds of its own stand as a fetch.

        What is neither a page nor one that was skipped is named by the detail.
        Never raises, as a retriever that reports impossible times must not cost the answer: an end that cannot be is put where
        the other one is, and both at now where neither can.
        """
        for step in event.steps:
            self._record_retrieval(step, EventKind.RETRIEVAL_STEP)
        self._record_retrieval(
            event, EventKind.RETRIEVAL_STEP if event.kind in _STEPS else _KIND_OF.get(event.kind, EventKind.FETCH)
        )

    def _record_retrieval(self, event: RetrievalEvent, kind: EventKind) -> None:
        is_named = kind is _KIND_OF.get(event.kind)
        parts = (None if is_named else event.kind, event.source if event.title else None, event.detail)
        ends = [end for end in (event.started_s, event.ended_s) if abs(end - self._arrived_at) < MAX_TIME_S]
        ends = ends or [time.monotonic()]
        self.record(
            kind,
            at=ends[0],
            until=max(ends),
            label=event.title or event.source,
            detail=" · ".join(part for part in parts if part) or None,
        )

    def timeline(self, measures: Mapping[str, float | int] | None = None) -> Timeline:
        """All that was recorded so far, with the ``measures`` of the result."""
        dropped = {"num_events_dropped": self._num_dropped} if self._num_dropped else {}
        return Timeline(
            self._timeline.question,
            self._timeline.mode,
            (*self._events, *self._milestones.values()),
            {**(measures or {}), **dropped},
            self._timeline.asked_at,
        )
