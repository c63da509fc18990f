"""Ways to bring a question's context to the engine: what each sends when a chunk comes, and to which scheduler."""

from collections.abc import Mapping

from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.frontends.appending import PaperStreaming
from stream2llm_rag.simulation.frontends.base import Door, Frontend
from stream2llm_rag.simulation.frontends.stock import NativeStreaming, NonStreaming
from stream2llm_rag.simulation.frontends.streaming import HINTS, Streaming

_FIXED: Mapping[str, type[Frontend]] = {kind.name: kind for kind in (NonStreaming, NativeStreaming, PaperStreaming)}


def make_frontend(name: str) -> Frontend:
    """The front end called ``name``: ``ns``, ``native``, ``vllm-s``, or ours by its policy, as ``fcfs`` or ``fcfs+hints``.

    Raises :class:`InvalidInputError` for a name that is none of them; a policy may be a ``module:Class``.
    """
    if name in _FIXED:
        return _FIXED[name]()
    policy = name.removesuffix(HINTS)
    if policy not in POLICIES and ":" not in policy:
        known = ", ".join([*_FIXED, *sorted(POLICIES)])
        raise InvalidInputError(f"there is no front end {name!r}. Write one of {known}, or a policy's 'module:Class'.")
    return Streaming(policy, hints=policy != name)


__all__ = ["Door", "Frontend", "NativeStreaming", "NonStreaming", "PaperStreaming", "Streaming", "make_frontend"]
