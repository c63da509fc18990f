"""Scheduling policies: pure, who comes first."""

from stream2llm_rag.engine.policy.base import LiveRequest, Policy, Rank
from stream2llm_rag.engine.policy.fcfs import Fcfs

__all__ = ["Fcfs", "LiveRequest", "Policy", "Rank"]
