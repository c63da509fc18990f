"""What a crawl fetches next. Pure: knows URLs and times, opens nothing."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, origin_of

_FAIR_TURN = 4


@dataclass(frozen=True, slots=True)
class Target:
    """A URL to fetch. ``key`` is its identity: two URLs with one key are one page.

    ``depth`` counts the links from a seed, ``num_redirects`` the redirects since the last link, ``num_retries`` the tries that
    failed; ``seed`` is the seed that this is, or was redirected from. ``score`` says how promising it is, from 0 to 1. It
    ``may_list`` others, as a sitemap or a feed does. ``steps`` are what was done before, where a redirect led here.
    """

    url: CanonicalUrl
    key: CanonicalUrl
    depth: int = 0
    num_redirects: int = 0
    seed: CanonicalUrl | None = None
    num_retries: int = 0
    score: float = 1.0
    may_list: bool = False
    steps: tuple[RetrievalEvent, ...] = field(default=(), compare=False)


class Frontier:
    """Queued targets, best first, among equals breadth first and hosts in turn, none twice.

    One turn in every four goes to the host that was served longest ago, to its best target: a host whose links praise
    themselves cannot keep the others out.

    Holds ``max_urls`` URLs over its life; what is found beyond that is left out.
    """

    def __init__(self, *, max_urls: int) -> None:
        self._max_urls = max_urls
        self._seen: set[CanonicalUrl] = set()
        self._settled: set[CanonicalUrl] = set()
        self._queues: dict[str, list[tuple[float, int, int, Target]]] = {}  # heaps of (-score, depth, order of arrival, target)
        self._num_added = 0
        self._num_popped = 0
        self._last_served: dict[str, int] = {}
        self._closed: set[str] = set()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, target: Target) -> bool:
        """Queue ``target``; False where its page was queued before, its host is closed, or the frontier had all it can hold."""
        if target.key in self._seen or len(self._seen) >= self._max_urls or self.is_closed(target.url):
            return False
        self._seen.add(target.key)
        self.put_back(target)
        return True

    def put_back(self, target: Target) -> None:
        """Queue a target that was given out before, to be tried again."""
        self._num_added += 1
        queue = self._queues.setdefault(origin_of(target.url), [])
        heapq.heappush(queue, (-target.score, target.depth, self._num_added, target))

    def close(self, origin: str) -> None:
        """Drop what is queued of ``origin``, and take no more of it."""
        self._closed.add(origin)
        self._queues.pop(origin, None)

    def is_closed(self, url: CanonicalUrl) -> bool:
        """Whether its origin was closed."""
        return origin_of(url) in self._closed

    def pop(self, wait_s: Callable[[str], float]) -> Target | None:
        """The next target, or None while no origin with queued targets is ready.

        ``wait_s(origin)`` is the time in seconds until a request may start there: 0 now, infinite when no slot is free.
        The highest score goes first, then the lowest depth, then the origin that was served longest ago.
        """
        while ready := [origin for origin in self._queues if wait_s(origin) <= 0]:
            is_fair_turn = self._num_popped % _FAIR_TURN == _FAIR_TURN - 1
            origin = min(ready, key=self._time_served if is_fair_turn else self._rank)
            target = self._take(origin)
            if target.key not in self._settled:
                self._num_popped += 1
                self._last_served[origin] = self._num_popped
                return target
        return None

    def next_ready_s(self, wait_s: Callable[[str], float]) -> float:
        """Seconds until :meth:`pop` can give a target by time alone; infinite where only a freed slot or a new link helps."""
        return min(map(wait_s, self._queues), default=math.inf)

    def settle(self, *keys: CanonicalUrl) -> bool:
        """Note that a page with these identities is done with; False where one of them already was (a duplicate).

        Queued targets of these identities are not given out any more.
        """
        if not self._settled.isdisjoint(keys):
            return False
        self._settled.update(keys)
        return True

    def _rank(self, origin: str) -> tuple[float, int, int]:
        cost, depth, _, _ = self._queues[origin][0]
        return cost, depth, self._time_served(origin)

    def _time_served(self, origin: str) -> int:
        return self._last_served.get(origin, 0)

    def _take(self, origin: str) -> Target:
        queue = self._queues[origin]
        target = heapq.heappop(queue)[-1]
        if not queue:
            del self._queues[origin]
        return target
