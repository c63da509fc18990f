"""The figures of a timeline: their order, names and units in words, and one sentence that compares two runs."""

from __future__ import annotations

from collections.abc import Sequence

from stream2llm_rag.timeline.events import EventKind, Timeline

_NAMES = {
    "ttft_s": "TTFT after the final context",
    "arrival_to_first_token_s": "Question to first token",
    "retrieval_s": "Retrieval",
    "num_pages": "Pages",
    "prompt_tokens": "Prompt tokens",
    "overlap_tokens": "Tokens computed before the final context",
    "output_tokens": "Tokens of the answer",
    "num_evictions": "Evictions",
}


def measures_of(timeline: Timeline) -> dict[str, float | int]:
    """What the events show, overruled by the measures that the timeline carries; well-known ones first."""
    found = {**_derived(timeline), **timeline.measures}
    known = [name for name in _NAMES if name in found]
    return {name: found[name] for name in (*known, *(name for name in found if name not in _NAMES))}


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
    amount, unit = (value, "s") if abs(value) >= 0.9995 else (value * 1e3, "ms")
    digits = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{digits}f}".removesuffix(".00") + f" {unit}"


def count(value: float) -> str:
    """A number with its thousands grouped; fractions to three decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def comparison(timelines: Sequence[Timeline]) -> str | None:
    """One sentence on the TTFT of the first streaming run and the first usual one; None where either has none."""
    by_mode: dict[str, float] = {}
    for timeline in timelines:
        if (ttft_s := measures_of(timeline).get("ttft_s")) is not None:
            by_mode.setdefault(timeline.mode, ttft_s)
    ours, usual = by_mode.get("streaming"), by_mode.get("non_streaming")
    if not ours or not usual:
        return None
    ratio = f"{usual / ours:.1f} times sooner" if usual >= ours else f"{ours / usual:.1f} times later"
    return f"First token {seconds(ours)} after the final context, instead of {seconds(usual)}: {ratio}."
