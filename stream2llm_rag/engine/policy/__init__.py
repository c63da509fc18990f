"""Scheduling policies: pure, who comes first."""

from stream2llm_rag.engine.policy.base import LiveRequest, Policy, Rank
from stream2llm_rag.engine.policy.fcfs import Fcfs
from stream2llm_rag.errors import InvalidInputError

POLICIES: dict[str, type[Policy]] = {"fcfs": Fcfs}


def make_policy(name: str) -> Policy:
    """The policy called ``name``; :class:`~stream2llm_rag.errors.InvalidInputError` when there is none."""
    if name not in POLICIES:
        raise InvalidInputError(f"there is no policy {name!r}. Write one of: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()


__all__ = ["POLICIES", "Fcfs", "LiveRequest", "Policy", "Rank", "make_policy"]
