"""Statistics of the engine core: taken from vLLM's stream of them, and exported to Prometheus beside vLLM's own."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import StatLoggerBase

from stream2llm_rag.engine.feedback import STATS_KEY, FeedbackHub

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
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


@dataclass(frozen=True, slots=True)
class Series:
    """One exported series, and which of :class:`~stream2llm_rag.engine.feedback.EngineCounters` it shows."""

    family: str
    counter: str
    help: str
    kind: str | None = None


GAUGES = (
    Series("stream2llm:num_requests_partial", "num_partial", "Requests whose context may still change."),
    Series("stream2llm:num_requests_complete", "num_complete", "Requests whose prompt is final, plain ones among them."),
    Series("stream2llm:num_requests_running", "num_running", "Requests in the running batch."),
    Series("stream2llm:num_requests_waiting", "num_waiting", "Requests with work that no step has taken yet."),
    Series("stream2llm:num_requests_idle", "num_idle", "Partial requests with nothing to compute."),
    Series("stream2llm:num_idle_blocks", "num_idle_blocks", "KV blocks that idle requests hold."),
    Series("stream2llm:num_used_blocks", "num_used_blocks", "KV blocks that any request holds."),
    Series("stream2llm:num_host_slots", "num_host_slots", "Blocks that host memory has room for."),
    Series("stream2llm:num_used_host_slots", "num_used_host_slots", "Blocks of preempted requests in host memory."),
)
COUNTERS = (
    Series("stream2llm:evictions", "num_whole_evictions", "Planned evictions, by how much of a request went.", "whole"),
    Series("stream2llm:evictions", "num_tail_evictions", "Planned evictions, by how much of a request went.", "tail"),
    Series("stream2llm:preemptions", "num_preemptions", "Preemptions that vLLM made beyond the plan."),
    Series("stream2llm:swap_evictions", "num_swap_evictions", "Evictions and preemptions whose KV was kept in host memory."),
    Series("stream2llm:swapped_blocks", "num_blocks_out", "Blocks copied to host memory, and back.", "out"),
    Series("stream2llm:swapped_blocks", "num_blocks_in", "Blocks copied to host memory, and back.", "in"),
    Series("stream2llm:ops", "num_ops", "Operations of streams that reached the scheduler."),
    Series("stream2llm:ops_refused", "num_ops_refused", "Operations that were forged, malformed, or out of place."),
    Series("stream2llm:grants_refused", "num_grants_refused", "Planned requests that vLLM did not schedule."),
    Series("stream2llm:steps", "num_steps", "Steps of the scheduler with streams to plan for."),
    Series("stream2llm:planning_seconds", "planning_s", "Time of these steps beyond vLLM's own scheduling."),
)
_LABELS = ("model_name", "engine")


class _EngineCollector(Collector):
    """Reads the counters of all engines of this process when Prometheus asks: nothing is written in a step.

    One collector for all, as a registry's families must be unique; engines with the same labels are summed. As with every
    collector, prometheus_client's multiprocess mode does not gather it: each process exports its own.
    """

    def __init__(self) -> None:
        self._sources: list[tuple[str, FeedbackHub]] = []
        self._turn = threading.Lock()

    @contextmanager
    def showing(self, model_name: str, hub: FeedbackHub) -> Iterator[None]:
        source = (model_name, hub)
        with self._turn:
            if not self._sources:
                REGISTRY.register(self)
            self._sources.append(source)
        try:
            yield
        finally:
            with self._turn:
                self._sources.remove(source)
                if not self._sources:
                    REGISTRY.unregister(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every family, with one sample for each engine core."""
        sums: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for model_name, hub in tuple(self._sources):
            for index, counters in tuple(hub.counters.items()):
                sums[model_name, str(index)].update(asdict(counters))
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for make, metrics in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for metric in metrics:
                kind = () if metric.kind is None else (metric.kind,)
                labels = (*_LABELS, "kind") if kind else _LABELS
                family = families.setdefault(metric.family, make(metric.family, metric.help, labels=labels))
                for source, values in sums.items():
                    family.add_metric((*source, *kind), values[metric.counter])
        return families.values()


_collector = _EngineCollector()
exported = _collector.showing
"""``with exported(model_name, hub): ...`` shows the counters of ``hub`` in prometheus_client's default registry."""
