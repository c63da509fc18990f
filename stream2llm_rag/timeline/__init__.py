"""What happened when, while one question was answered: recorded, kept as JSON, and drawn.

Retrieval stands above prefill on one time axis, for a terminal, as a stand-alone SVG, or as a self-contained HTML page. Several
timelines, such as a streamed run and the usual way of working, are drawn under each other on the same axis.
"""

from stream2llm_rag.timeline.events import Event, EventKind, Timeline, timelines_from_json, timelines_to_json
from stream2llm_rag.timeline.html import render_html
from stream2llm_rag.timeline.recorder import Recorder
from stream2llm_rag.timeline.svg import render_svg
from stream2llm_rag.timeline.terminal import render_terminal

__all__ = [
    "Event",
    "EventKind",
    "Recorder",
    "Timeline",
    "render_html",
    "render_svg",
    "render_terminal",
    "timelines_from_json",
    "timelines_to_json",
]
