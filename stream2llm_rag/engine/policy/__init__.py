"""Scheduling policies: pure; who comes first, and whose KV goes."""

from importlib import import_module

from stream2llm_rag.engine.policy.aged import AgedFcfs
from stream2llm_rag.engine.policy.base import LiveRequest, Policy, Rank
from stream2llm_rag.engine.policy.paper import Fcfs, Fifo, Lcas, Mcps, TailFcfs
from stream2llm_rag.errors import InvalidInputError

DEFAULT_POLICY = "aged-fcfs"
POLICIES: dict[str, type[Policy]] = {
    DEFAULT_POLICY: AgedFcfs,
    "fifo": Fifo,
    "fcfs": Fcfs,
    "lcas": Lcas,
    "mcps": Mcps,
    "tail-fcfs": TailFcfs,
}


def make_policy(name: str) -> Policy:
    """Make the policy called ``name``, one of ours or a ``module:Class``. Raises InvalidInputError where that is none."""
    made = (POLICIES.get(name) or _import_policy(name))()
    if not isinstance(made, Policy):
        raise InvalidInputError(
            f"policy {name!r} makes a {type(made).__name__}. Make it a subclass of {Policy.__module__}.Policy."
        )
    return made


def _import_policy(name: str) -> type[Policy]:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise InvalidInputError(f"there is no policy {name!r}. Write one of {', '.join(sorted(POLICIES))}, or 'module:Class'.")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(f"policy {name!r} cannot be imported: {error}. Write 'module:Class'.") from error
    if not callable(found):
        raise InvalidInputError(f"policy {name!r} is a {type(found).__name__}. Write the name of a class.")
    return found  # type: ignore[no-any-return]


__all__ = ["DEFAULT_POLICY", "POLICIES", "LiveRequest", "Policy", "Rank", "make_policy"]
