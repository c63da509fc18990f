"""The figures of a timeline: their order, names and units in words, and one sentence that compares two runs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from stream2llm_rag.timeline.events import MODES, EventKind, Timeline

_NAMES = {
    "ttft_s": "TTFT after the final context",
    "arrival_to_first_token_s": "Question to first token",
    "retrieval_s": "Retrieval",
    "num_pages": "Pages",
    "prompt_tokens": "Prompt tokens",
    "overlap_tokens": "Tokens computed before the final context",
    "output_tokens": "Tokens of the answer",
    "computed_tokens": "Tokens computed, those lost and again too",
    "last_delta_tokens": "Tokens of the last delta",
    "invalidated_tokens": "Tokens whose KV a change of context cost",
    "waiting_s": "Had work but did not run",
    "idle_s": "Had no work",
    "num_evictions": "Evictions",
}
_ORDER = {name: index for index, name in enumerate(_NAMES)}


def measures_of(timeline: Timeline) -> dict[str, float | int]:
    """What the events show, overruled by the measures that the timeline carries; well-known ones first."""
    found = {**_derived(timeline), **timeline.measures}
    return {name: found[name] for name in sorted(found, key=_rank)}


def table(timelines: Sequence[Timeline]) -> dict[str, list[float | int | None]]:
    """Each measure that any of ``timelines`` has, with its value in every one; None where it has none."""
    columns = [measures_of(timeline) for timeline in timelines]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in sorted(names, key=_rank)}


def _rank(name: str) -> int:
    return _ORDER.get(name, len(_ORDER))


def _derived(timeline: Timeline) -> dict[str, float | int]:
    figures: dict[str, float | int] = {
        "num_pages": sum(event.kind is EventKind.FETCH for event in timeline.events),
        "num_evictions": sum(event.kind is EventKind.EVICTED for event in timeline.events),
    }
    if end := timeline.first(EventKind.RETRIEVAL_END, EventKind.RETRIEVAL_FAILED, EventKind.DEADLINE):
        figures["retrieval_s"] = end.start_s
    final, token = timeline.first(EventKind.FINAL_CONTEXT), timeline.first(EventKind.FIRST_TOKEN)
    if final:
        figures["overlap_tokens"] = sum(
            event.tokens or 0 for event in timeline.events if event.kind is EventKind.COMPUTED and event.end_s <= final.start_s
        )
    if token:
        figures["arrival_to_first_token_s"] = token.start_s
    if final and token and token.start_s >= final.start_s:
        figures["ttft_s"] = token.start_s - final.start_s
    if (done := timeline.first(EventKind.DONE)) and done.tokens is not None:
        figures["output_tokens"] = done.tokens
    return figures


def name_of(measure: str) -> str:
    """What ``measure`` is called; one that is not known, by its own name in words."""
    return _NAMES.get(measure) or measure.removesuffix("_s").removeprefix("num_").replace("_", " ").capitalize()


def value_of(measure: str, value: float) -> str:
    """``value`` with the unit that the name of ``measure`` implies."""
    return seconds(value) if measure.endswith("_s") else count(value)


def seconds(value: float) -> str:
    """A duration to three digits: ``8.4 ms``, ``120 ms``, ``1.23 s``, ``12.3 s``."""
    if not value:
        return "0 s"
    amount, unit = (value, "s") if abs(value) >= 0.9995 else (value * 1e3, "ms")
    digits = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{digits}f} {unit}"


def count(value: float) -> str:
    """A number with its thousands grouped; fractions to three decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def comparison(timelines: Sequence[Timeline]) -> str | None:
    """One sentence on the median TTFT of the streaming runs and of the usual ones; None where one of them is missing."""
    ours, usual = (_ttfts_s(timelines, mode) for mode in MODES)
    if not ours or not usual:
        return None
    ours_s, usual_s = median(ours), median(usual)
    ratio = f"{usual_s / ours_s:.1f} times sooner" if usual_s >= ours_s else f"{ours_s / usual_s:.1f} times later"
    subject = "First token" if len(ours) == len(usual) == 1 else "First token, in the median,"
    return f"{subject} {seconds(ours_s)} after the final context, instead of {seconds(usual_s)}: {ratio}."


def _ttfts_s(timelines: Sequence[Timeline], mode: str) -> list[float]:
    found = (measures_of(timeline).get("ttft_s") for timeline in timelines if timeline.mode == mode)
    return [ttft_s for ttft_s in found if ttft_s is not None and ttft_s > 0]
