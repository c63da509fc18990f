"""Ways to bring a question's context to the engine: what each sends when a chunk comes, and to which scheduler."""

from collections.abc import Mapping

from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.frontends.appending import PaperStreaming
from stream2llm_rag.simulation.frontends.base import Door, Frontend
from stream2llm_rag.simulation.frontends.stock import NativeStreaming, NonStreaming
from stream2llm_rag.simulation.frontends.streaming import HINTS, Streaming

_FIXED: Mapping[str, type[Frontend]] = {kind.name: kind for kind in (NonStreaming, NativeStreaming, PaperStreaming)}


def make_frontend(name: str) -> Frontend:
    """The front end called ``name``: ``ns``, ``native``, ``vllm-s``, or ours by its policy, as ``fcfs`` or ``fcfs+hints+auto``.

    Behind the policy ``hints`` may stand, and what becomes of victims' KV: ``auto``, ``swap``, or ``recompute`` as without.
    Raises :class:`InvalidInputError` for a name that is none of them; a policy may be a ``module:Class``.
    """
    if name in _FIXED:
        return _FIXED[name]()
    policy, *extras = name.split("+")
    ways = [extra for extra in extras if extra in set(Preemption)]
    if (policy not in POLICIES and ":" not in policy) or len(ways) > 1 or not {*extras} <= {HINTS, *ways}:
        known = ", ".join([*_FIXED, *sorted(POLICIES)])
        extras_known = ", ".join(f"+{extra}" for extra in (HINTS, *Preemption))
        raise InvalidInputError(
            f"there is no front end {name!r}. Write one of {known}, or a policy's 'module:Class', and behind it {extras_known}."
        )
    return Streaming(policy, HINTS in extras, Preemption(*ways) if ways else Preemption.RECOMPUTE)


__all__ = ["Door", "Frontend", "NativeStreaming", "NonStreaming", "PaperStreaming", "Streaming", "make_frontend"]
