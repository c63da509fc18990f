"""What the crawlers of this process did, in Prometheus form: counted as it happens, read when Prometheus asks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.retrievers.crawler.pages import Source

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class CrawlCounters:
    """The counts of one crawler. Written on its event loop alone; other threads read what is there."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()  # by kind of event and category
        self.downloads: Counter[str] = Counter()  # by where they came from
        self.num_bytes: Counter[str] = Counter()
        self.download_s = 0.0

    def ended(self, event: RetrievalEvent) -> None:
        """Something came of a page, a list or a search."""
        self.outcomes[event.kind, event.category or ""] += 1

    def downloaded(self, came_from: Source, num_bytes: int, seconds: float) -> None:
        """A page, a sitemap or a feed is there; ``num_bytes`` are those of its body, decompressed."""
        self.downloads[came_from] += 1
        self.num_bytes[came_from] += num_bytes
        self.download_s += seconds

    def add(self, other: CrawlCounters) -> None:
        """Count what ``other`` counted."""
        self.outcomes.update(other.outcomes.copy())  # copies: another thread may write
        self.downloads.update(other.downloads.copy())
        self.num_bytes.update(other.num_bytes.copy())
        self.download_s += other.download_s


class _CrawlCollector(Collector):
    """The sum over all crawlers since the first was opened, closed ones included, so that no counter falls.

    As with every collector, prometheus_client's multiprocess mode does not gather it: each process exports its own.
    """

    def __init__(self) -> None:
        self._closed = CrawlCounters()
        self._open: dict[CrawlCounters, Callable[[], int]] = {}
        self._turn = threading.Lock()
        self._is_registered = False

    def show(self, counters: CrawlCounters, num_in_flight: Callable[[], int]) -> None:
        """A crawler opens; ``num_in_flight`` tells how many pages it has on their way."""
        with self._turn:
            self._open[counters] = num_in_flight
            if not self._is_registered:
                REGISTRY.register(self)
                self._is_registered = True

    def keep(self, counters: CrawlCounters) -> None:
        """It closes."""
        with self._turn:
            if self._open.pop(counters, None) is not None:
                self._closed.add(counters)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        total = CrawlCounters()
        with self._turn:
            for counters in (self._closed, *self._open):
                total.add(counters)
            num_open, num_in_flight = len(self._open), sum(count() for count in self._open.values())
        outcomes = CounterMetricFamily(
            "stream2llm:crawl_outcomes", "What came of pages, lists and searches, and why.", labels=("kind", "category")
        )
        for labels, value in total.outcomes.items():
            outcomes.add_metric(labels, value)
        downloads = CounterMetricFamily(
            "stream2llm:crawl_downloads", "Bodies that were read, by where they came from.", labels=("came_from",)
        )
        num_bytes = CounterMetricFamily("stream2llm:crawl_bytes", "Their bytes, decompressed.", labels=("came_from",))
        for came_from, value in total.downloads.items():
            downloads.add_metric((came_from,), value)
            num_bytes.add_metric((came_from,), total.num_bytes[came_from])
        seconds = CounterMetricFamily("stream2llm:crawl_download_seconds", "The time they took.", value=total.download_s)
        crawlers = GaugeMetricFamily("stream2llm:num_crawlers", "Crawlers that are open.", value=num_open)
        in_flight = GaugeMetricFamily("stream2llm:num_pages_in_flight", "Pages on their way.", value=num_in_flight)
        return (outcomes, downloads, num_bytes, seconds, crawlers, in_flight)


collector = _CrawlCollector()
"""In prometheus_client's default registry from the first crawler on."""
