"""What a crawl came to, host by host: counted from the events of its deltas, and so the same where it is played back."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream2llm_rag.documents import RetrievalEvent

UNSORTED = "other"  # why a source was left out, where its event has no category
_KINDS = frozenset({"fetch", "skip", "retry", "list"})


@dataclass(frozen=True, slots=True)
class HostReport:
    """What came of one host.

    ``num_fetched`` pages became documents; ``skipped`` counts those that did not, by why (:class:`~.crawler.pages.Skip`);
    ``num_retries`` are tries that failed for then, ``num_lists`` the sitemaps and feeds that were read. Of all that was read,
    ``num_from_cache`` came from the disk, asked for or not.
    """

    num_fetched: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    num_retries: int = 0
    num_lists: int = 0
    num_from_cache: int = 0

    @property
    def num_skipped(self) -> int:
        """Pages that were left out."""
        return sum(self.skipped.values())


@dataclass(frozen=True, slots=True)
class CrawlReport:
    """``hosts`` maps ``host[:port]`` to what came of it, in the order in which they were met. ``total`` is their sum."""

    hosts: Mapping[str, HostReport]
    total: HostReport

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"total": _plain(self.total), "hosts": {host: _plain(report) for host, report in self.hosts.items()}}


class CrawlTally:
    """Counts events as they come. Those of other retrievers, whose sources are no web addresses, are passed over."""

    def __init__(self) -> None:
        self._hosts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def note(self, event: RetrievalEvent) -> None:
        """Count ``event``."""
        scheme, _, rest = event.source.partition("://")
        if scheme not in ("http", "https") or event.kind not in _KINDS:
            return
        host = re.split("[/?#]", rest, maxsplit=1)[0]
        counts = self._hosts[host]
        counts[event.kind] += 1
        counts["from_cache"] += sum(step.category in ("cache", "confirmed") for step in event.steps)
        if event.kind == "skip":
            self._skipped[host][event.category or UNSORTED] += 1

    def report(self) -> CrawlReport | None:
        """What came so far; None where nothing was a crawl's."""
        if not self._hosts:
            return None
        hosts = {host: _report(counts, self._skipped[host]) for host, counts in self._hosts.items()}
        total = _report(sum(self._hosts.values(), Counter()), sum(self._skipped.values(), Counter()))
        return CrawlReport(hosts, total)


def _report(counts: Counter[str], skipped: Counter[str]) -> HostReport:
    return HostReport(counts["fetch"], dict(skipped.most_common()), counts["retry"], counts["list"], counts["from_cache"])


def _plain(report: HostReport) -> dict[str, Any]:
    return {
        "num_fetched": report.num_fetched,
        "num_skipped": report.num_skipped,
        "skipped": dict(report.skipped),
        "num_retries": report.num_retries,
        "num_lists": report.num_lists,
        "num_from_cache": report.num_from_cache,
    }
