"""Workloads replayed in real time on real engines: stock vLLM's ways and ours, side by side.

A trace goes in, and the same records come out as of the simulation. ``open_targets`` starts an engine for each way,
``interleave`` runs rounds of them in turn, ``replay`` is one round.
"""

from stream2llm_rag.bench.hosts import open_targets
from stream2llm_rag.bench.replay import Round, replay
from stream2llm_rag.bench.rounds import RoundSettings, interleave, warm_up
from stream2llm_rag.bench.ways import DEFAULT, NATIVE, NON_STREAMING, Way, WayKind, every_way, parse_way

__all__ = [
    "DEFAULT",
    "NATIVE",
    "NON_STREAMING",
    "Round",
    "RoundSettings",
    "Way",
    "WayKind",
    "every_way",
    "interleave",
    "open_targets",
    "parse_way",
    "replay",
    "warm_up",
]
