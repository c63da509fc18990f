"""What happened to one question, and when: values, and their JSON.

Times are seconds since the question's arrival. Labels, details and questions are the words of strangers and stay as they came;
whoever shows them cleans them first (:mod:`stream2llm_rag.timeline.text`).
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType, NoneType
from typing import Any, TypeVar

from stream2llm_rag.errors import InvalidInputError

FORMAT_VERSION = 1
MODES = ("streaming", "non_streaming")
MAX_TIME_S = 1e9
MAX_NUMBER = 10**15  # what a float still holds exactly, so that every sum and every picture of it is right

_T = TypeVar("_T")
_REQUIRED = object()


class EventKind(StrEnum):
    """What happened, and what ``tokens`` counts where the event has any."""

    FETCH = "fetch"
    """A retriever brought a page, or did something of its own that ``detail`` names."""
    RETRIEVAL_STEP = "retrieval_step"
    """A retriever did something on the way to a page, such as to read a robots.txt; ``detail`` names it."""
    SKIP = "skip"
    """A source was left out; ``detail`` says why."""
    DELTA = "delta"
    """Context was handed to the engine; ``tokens`` is by how many it grew, negative where a replacement shrank it.

    ``num_kept`` is there where the context was replaced from some token on: those before it."""
    RETRIEVAL_END = "retrieval_end"
    RETRIEVAL_FAILED = "retrieval_failed"
    DEADLINE = "deadline"
    """Retrieval was cut short, to answer with what was there."""
    COMPUTED = "computed"
    """One prefill step; ``tokens`` is how many it computed."""
    EVICTED = "evicted"
    """KV was given up for other requests; ``tokens`` is how many were lost, None for all."""
    INVALIDATED = "invalidated"
    """KV no longer fits the context, which was replaced; ``tokens`` is how many were lost."""
    RESUMED = "resumed"
    """The request came back; ``tokens`` is how many returned without being computed, from the prefix cache or from swap."""
    FINAL_CONTEXT = "final_context"
    """The context is complete: the hand-over that TTFT counts from; ``tokens`` is those of the question behind it."""
    FIRST_TOKEN = "first_token"  # noqa: S105 - a token of text, not a secret
    DONE = "done"
    """The answer ended; ``tokens`` is how many it has."""
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened between ``start_s`` and ``end_s``, which are equal for an instant.

    ``num_kept`` are the tokens, from the first one on, that a replacement of the context left in place, where it was one.
    Raises :class:`InvalidInputError` for times that are not ordered, not finite or negative, and for absurd token counts.
    """

    kind: EventKind
    start_s: float
    end_s: float
    label: str = ""
    tokens: int | None = None
    detail: str | None = None
    num_kept: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s <= MAX_TIME_S:
            raise InvalidInputError(
                f"start_s={self.start_s!r} and end_s={self.end_s!r} are no interval of time."
                f" Write seconds since the question's arrival with 0 <= start_s <= end_s <= {MAX_TIME_S:.0e}."
            )
        if self.tokens is not None and abs(self.tokens) > MAX_NUMBER:
            raise InvalidInputError(f"tokens={self.tokens!r} is no number of tokens. Write at most {MAX_NUMBER:.0e}.")
        if self.num_kept is not None and not 0 <= self.num_kept <= MAX_NUMBER:
            raise InvalidInputError(f"num_kept={self.num_kept!r} is no number of tokens. Write 0 to {MAX_NUMBER:.0e}.")


@dataclass(frozen=True, slots=True)
class Timeline:
    """All that happened to one question.

    ``mode`` is ``streaming`` or ``non_streaming``; ``events`` are put in the order of their start; ``measures`` are figures of
    the result by name, durations ending in ``_s``; ``asked_at`` is when the question came, in seconds since the epoch, where
    that is known. Raises :class:`InvalidInputError` for another mode, and for a measure or a moment that is no finite number.
    """

    question: str
    mode: str
    events: tuple[Event, ...] = ()
    measures: Mapping[str, float | int] = field(default_factory=dict, hash=False)
    asked_at: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInputError(f"mode is {self.mode!r}. Write one of {', '.join(MODES)}.")
        for name, value in self.measures.items():
            if not abs(value) <= MAX_NUMBER:
                raise InvalidInputError(
                    f"measures.{name} is {value!r}. Write a number of at most {MAX_NUMBER:.0e}, or leave it out."
                )
        if self.asked_at is not None and not 0 <= self.asked_at <= MAX_NUMBER:
            raise InvalidInputError(f"asked_at is {self.asked_at!r}. Write seconds since the epoch, or leave it out.")
        object.__setattr__(self, "events", tuple(sorted(self.events, key=lambda event: event.start_s)))
        object.__setattr__(self, "measures", MappingProxyType(dict(self.measures)))

    @property
    def duration_s(self) -> float:
        """Seconds from the question's arrival to the end of the last event; 0 without events."""
        return max((event.end_s for event in self.events), default=0.0)

    def first(self, *kinds: EventKind) -> Event | None:
        """The earliest event of any of ``kinds``."""
        return next((event for event in self.events if event.kind in kinds), None)

    def to_json(self) -> str:
        """One JSON object, in ASCII, that :meth:`from_json` reads."""
        return json.dumps(_encode(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Timeline:
        """The timeline that :meth:`to_json` wrote. Raises :class:`InvalidInputError`, which says what is wrong and where."""
        return _decode(_parse(text), "")


def timelines_to_json(timelines: Iterable[Timeline]) -> str:
    """One JSON array, in ASCII, that :func:`timelines_from_json` reads."""
    return json.dumps([_encode(timeline) for timeline in timelines], allow_nan=False)


def timelines_from_json(text: str) -> tuple[Timeline, ...]:
    """The timelines of an array, or the one of a single object. Raises :class:`InvalidInputError` as ``from_json`` does."""
    raw = _parse(text)
    if isinstance(raw, list):
        return tuple(_decode(item, f"[{index}]") for index, item in enumerate(raw))
    return (_decode(raw, ""),)


def _encode(timeline: Timeline) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        "question": timeline.question,
        "mode": timeline.mode,
        "events": [_encode_event(event) for event in timeline.events],
        "measures": dict(timeline.measures),
        **({} if timeline.asked_at is None else {"asked_at": timeline.asked_at}),
    }


def _encode_event(event: Event) -> dict[str, Any]:
    required = {"kind": event.kind.value, "start_s": event.start_s, "end_s": event.end_s}
    optional = {"label": event.label or None, "tokens": event.tokens, "detail": event.detail, "num_kept": event.num_kept}
    return required | {key: value for key, value in optional.items() if value is not None}


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of more digits than int() takes
        raise InvalidInputError(f"This is no timeline: not JSON ({error}). Write what Timeline.to_json() returned.") from error


def _decode(raw: object, where: str) -> Timeline:
    fields = _Fields(raw, where)
    fields.expect("version", int, str(FORMAT_VERSION), lambda version: version == FORMAT_VERSION)
    events = fields.expect("events", list, "an array of events")
    measures = _Fields(fields.expect("measures", dict, "an object of numbers", default={}), f"{where}.measures")
    return _placed(
        where,
        Timeline,
        question=fields.expect("question", str, "a string"),
        mode=fields.expect("mode", str, " or ".join(MODES)),
        events=tuple(_decode_event(event, f"{where}.events[{index}]") for index, event in enumerate(events)),
        measures={name: measures.expect(name, (int, float), "a number") for name in measures.raw},
        asked_at=fields.expect("asked_at", (int, float, NoneType), "seconds since the epoch", default=None),
    )


def _decode_event(raw: object, where: str) -> Event:
    fields = _Fields(raw, where)
    kinds = frozenset(EventKind)
    return _placed(
        where,
        Event,
        kind=EventKind(fields.expect("kind", str, f"one of {', '.join(EventKind)}", kinds.__contains__)),
        start_s=fields.expect("start_s", (int, float), "seconds"),
        end_s=fields.expect("end_s", (int, float), "seconds"),
        label=fields.expect("label", str, "a string", default=""),
        tokens=fields.expect("tokens", (int, NoneType), "a whole number", default=None),
        detail=fields.expect("detail", (str, NoneType), "a string", default=None),
        num_kept=fields.expect("num_kept", (int, NoneType), "a whole number", default=None),
    )


class _Fields:
    """The members of one JSON object, which stands at ``where`` of the text."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise _misfit(where, raw, "an object")
        self.raw = raw
        self._where = where

    def expect(
        self,
        key: str,
        types: type | tuple[type, ...],
        needed: str,
        holds: Callable[[Any], bool] = lambda _: True,
        default: object = _REQUIRED,
    ) -> Any:
        value = self.raw.get(key, default)
        if value is _REQUIRED or isinstance(value, bool) or not isinstance(value, types) or not holds(value):
            raise _misfit(f"{self._where}.{key}", value, needed)
        return value


def _misfit(where: str, value: object, needed: str) -> InvalidInputError:
    came = "missing" if value is _REQUIRED else reprlib.repr(value)
    return InvalidInputError(f"This is no timeline: {where.lstrip('.') or 'the whole'} is {came}. Write {needed}.")


def _placed(where: str, build: Callable[..., _T], **values: Any) -> _T:
    """``build(**values)``, with the place in the text added to what it finds wrong."""
    try:
        return build(**values)
    except InvalidInputError as error:
        raise InvalidInputError(f"This is no timeline: {where.lstrip('.') or 'the whole'}: {error}") from error
