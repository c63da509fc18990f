"""What a picture says in words: headings, names of lanes, tooltips, and the text that stands for the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from stream2llm_rag.timeline.events import EventKind, Timeline
from stream2llm_rag.timeline.lanes import Span
from stream2llm_rag.timeline.measures import comparison, count, measures_of, name_of, seconds, value_of
from stream2llm_rag.timeline.text import clean

_HEADINGS = {
    "streaming": ("Streaming", "prefill runs while pages come in"),
    "non_streaming": ("The usual way", "prefill starts after the last page"),
}

NAMES = {
    EventKind.FETCH: "page",
    EventKind.RETRIEVAL_STEP: "retrieval step",
    EventKind.SKIP: "skipped",
    EventKind.DELTA: "handed over",
    EventKind.RETRIEVAL_END: "retrieval ended",
    EventKind.RETRIEVAL_FAILED: "failed",
    EventKind.DEADLINE: "deadline",
    EventKind.COMPUTED: "prefill step",
    EventKind.EVICTED: "evicted",
    EventKind.INVALIDATED: "invalidated",
    EventKind.RESUMED: "resumed",
    EventKind.FINAL_CONTEXT: "final context",
    EventKind.FIRST_TOKEN: "first token",
    EventKind.DONE: "done",
    EventKind.ABORTED: "aborted",
}


def title_of(timelines: Sequence[Timeline]) -> str:
    """The question, or how many there are."""
    questions = {timeline.question for timeline in timelines}
    return clean(timelines[0].question) if len(questions) == 1 else f"{len(questions)} questions"


def headings(timelines: Sequence[Timeline]) -> list[tuple[str, str]]:
    """A heading and a line below it for each run: numbered where a mode occurs twice, with the question where they differ."""
    num_of_mode = Counter(timeline.mode for timeline in timelines)
    same_question = len({timeline.question for timeline in timelines}) == 1
    seen: Counter[str] = Counter()
    found = []
    for timeline in timelines:
        seen[timeline.mode] += 1
        title, subtitle = _HEADINGS[timeline.mode]
        number = f" {seen[timeline.mode]}" if num_of_mode[timeline.mode] > 1 else ""
        found.append((title + number, subtitle if same_question else clean(timeline.question)))
    return found


def describe(timelines: Sequence[Timeline]) -> str:
    """What somebody who cannot see the picture wants to know of it."""
    titles = (title for title, _ in headings(timelines))
    runs = (f"{title}: {', '.join(figures(timeline))}." for title, timeline in zip(titles, timelines, strict=True))
    return " ".join(sentence for sentence in (comparison(timelines), *runs) if sentence)


def figures(timeline: Timeline) -> Iterator[str]:
    """The measures of ``timeline``, each with its name and unit."""
    return (f"{clean(name_of(name))} {value_of(name, value)}" for name, value in measures_of(timeline).items())


def tooltip(span: Span) -> str:
    """A line on what happened, one on when, and one of details."""
    many = f" ({span.num_events} times)" if span.num_events > 1 else ""
    tokens = f", {count(span.tokens)} tokens" if span.tokens is not None else ""
    rest = f" and {span.num_events - 1} more" if span.num_events > 1 and span.label else ""
    lines = (
        f"{clean(span.label)}{rest}",
        f"{NAMES[span.kind]}{many}{tokens}, {interval(span.start_s, span.end_s)}",
        clean(span.detail or ""),
    )
    return "\n".join(line for line in lines if line)


def interval(start_s: float, end_s: float) -> str:
    """``at 1.20 s``, or ``1.20 s to 1.35 s (150 ms)``."""
    if start_s == end_s:
        return f"at {seconds(start_s)}"
    return f"{seconds(start_s)} to {seconds(end_s)} ({seconds(end_s - start_s)})"
