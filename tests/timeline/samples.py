"""Timelines to test with: a realistic pair, arbitrary ones, and words of strangers who mean harm."""

from __future__ import annotations

from hypothesis import strategies as st

from stream2llm_rag.timeline import Event, EventKind, Timeline

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    "]]><!--",
    '" onmouseover="alert(1)" x=\'',
    "{script} %s {0} &lt;b&gt;",
    "\x1b[31mred\x1b[0m \x1b]0;owned\x07 \x9b2J \x00\x08\x7f",
    "abc\u202edcba\u202c \u2066isolate\u2069 \u200e\u200b\ufeff",
    "line\nbreak\r\ttab\u2028separator\u2029",
    "lone \ud800 surrogate, \ufffe noncharacter",
    "zalgo " + "e" + "\u0301" * 200,
    "wide 漢字漢字漢字 🙂🙂",
    "x" * 5000,
)

# Binary fractions: sums and differences of them are exact, so that what happens at the same time is so for sure.
times = st.integers(0, 20_000).map(lambda ticks: ticks / 1024)
words = st.one_of(st.text(st.characters(), max_size=30), st.sampled_from(HOSTILE))


@st.composite
def events(draw: st.DrawFn) -> Event:
    start_s, end_s = sorted((draw(times), draw(times)))
    tokens, detail = draw(st.none() | st.integers(-500, 5000)), draw(st.none() | words)
    num_kept = draw(st.none() | st.integers(0, 5000))
    return Event(draw(st.sampled_from(EventKind)), start_s, end_s, draw(words), tokens, detail, num_kept)


measures = st.dictionaries(words, st.integers(-(10**15), 10**15) | st.floats(-1e15, 1e15), max_size=4)
timelines = st.builds(
    Timeline,
    question=words,
    mode=st.sampled_from(["streaming", "non_streaming"]),
    events=st.lists(events(), max_size=30).map(tuple),
    measures=measures,
    asked_at=st.none() | st.floats(0, 1e10),
)


def crawl(mode: str, num_pages: int = 9, num_steps: int = 9) -> Timeline:
    """Pages that come one after the other within 6 s, of 1,000 tokens each, and the answer to them."""
    gap_s, tokens = 6.0 / num_pages, 1000 * num_pages
    fetched = [(index * gap_s, (index + 1) * gap_s) for index in range(num_pages)]
    final_s, first_s = (6.125, 6.25) if mode == "streaming" else (6.125, 7.25)
    begin_s, end_s = (gap_s, 6.0625) if mode == "streaming" else (final_s, first_s)
    step_s = (end_s - begin_s) / num_steps
    happened = [Event(EventKind.FETCH, start, end, f"Page {index}") for index, (start, end) in enumerate(fetched)]
    happened += [Event(EventKind.DELTA, end, end, tokens=1000) for _, end in fetched]
    for index in range(num_steps):
        start_s = begin_s + index * step_s
        happened.append(Event(EventKind.COMPUTED, start_s, start_s + step_s, tokens=tokens // num_steps))
    happened += [
        Event(EventKind.RETRIEVAL_END, 6.0, 6.0),
        Event(EventKind.FINAL_CONTEXT, final_s, final_s),
        Event(EventKind.FIRST_TOKEN, first_s, first_s),
        Event(EventKind.DONE, first_s + 1, first_s + 1, tokens=64),
    ]
    return Timeline("How do I cancel a task?", mode, tuple(happened))


def hostile() -> list[Timeline]:
    """Both modes, with the words of strangers wherever words can stand."""
    happened = tuple(
        Event(kind, index / 4, index / 4 + 1, HOSTILE[index % len(HOSTILE)], 10, HOSTILE[(index + 1) % len(HOSTILE)])
        for index, kind in enumerate([*EventKind] * 2)
    )
    figures = dict.fromkeys(HOSTILE, 1)
    return [Timeline(HOSTILE[0], "streaming", happened, figures), Timeline(HOSTILE[1], "non_streaming", happened)]
