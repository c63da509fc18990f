"""Statistics of the engine core, taken from vLLM's stream of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from stream2llm_rag.engine.feedback import STATS_KEY, FeedbackHub

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


def feedback_logger(hub: FeedbackHub) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """Make a stat logger factory for ``AsyncLLM`` that hands the scheduler's records to ``hub``."""

    def make(vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        return _FeedbackLogger(hub, engine_index)

    return make


class _FeedbackLogger(StatLoggerBase):
    """vLLM calls loggers in the order in which they were given, its own last: they see the statistics without our key."""

    def __init__(self, hub: FeedbackHub, engine_index: int) -> None:
        self._hub = hub
        self._engine_index = engine_index

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is None or scheduler_stats.kv_connector_stats is None:
            return
        payload = scheduler_stats.kv_connector_stats.pop(STATS_KEY, None)
        if not scheduler_stats.kv_connector_stats:
            scheduler_stats.kv_connector_stats = None
        if payload is not None:
            self._hub.receive(payload, self._engine_index)

    def log_engine_initialized(self) -> None:
        pass
