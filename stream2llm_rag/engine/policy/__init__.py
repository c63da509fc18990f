"""Scheduling policies: pure; who comes first, and whose KV goes."""

from importlib import import_module

from stream2llm_rag.engine.policy.aged import AgedFcfs
from stream2llm_rag.engine.policy.base import LiveRequest, Policy, Rank, Rules
from stream2llm_rag.engine.policy.density import Density
from stream2llm_rag.engine.policy.paper import Fcfs, Fifo, Lcas, Mcps, TailFcfs
from stream2llm_rag.errors import InvalidInputError

DEFAULT_POLICY = "density"
POLICIES: dict[str, type[Policy]] = {
    "aged-fcfs": AgedFcfs,
    "density": Density,
    "fifo": Fifo,
    "fcfs": Fcfs,
    "lcas": Lcas,
    "mcps": Mcps,
    "tail-fcfs": TailFcfs,
}


def make_policy(name: str) -> Policy:
    """Make the policy called ``name``, one of ours or a ``module:Class``. Raises InvalidInputError where that is none."""
    return (POLICIES.get(name) or _import_policy(name))()


def _import_policy(name: str) -> type[Policy]:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise InvalidInputError(f"there is no policy {name!r}. Write one of {', '.join(sorted(POLICIES))}, or 'module:Class'.")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(f"policy {name!r} cannot be imported: {error}. Write 'module:Class'.") from error
    if not isinstance(found, type) or not issubclass(found, Policy):
        raise InvalidInputError(f"policy {name!r} is {found!r}. Write the name of a subclass of {Policy.__module__}.Policy.")
    return found


__all__ = ["DEFAULT_POLICY", "POLICIES", "LiveRequest", "Policy", "Rank", "Rules", "make_policy"]
