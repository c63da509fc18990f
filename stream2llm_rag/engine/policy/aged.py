"""First come, first served, with a bound on waiting."""

from __future__ import annotations

from stream2llm_rag.engine.policy.base import Rules
from stream2llm_rag.engine.policy.paper import Fcfs


class AgedFcfs(Fcfs):
    """First come, first served in two tiers, until somebody has waited for ten seconds."""

    rules = Rules(max_wait_s=10.0)
