"""How hard a crawler may ask each host, over all streams that share it. Pure: it is told the time.

A host is an origin (``scheme://host:port``). As long as its robots.txt is not known, one request at a time goes there.

aiolimiter does not fit in here: its limiter is awaited, by a task that has its page already. Here a page is chosen only when
its host is ready, so that the best page of any ready host goes first, and a host that waits ties nothing up; and the delay of a
host changes while it is crawled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stream2llm_rag.retrievers.crawler.retries import MAX_WAIT_S
from stream2llm_rag.retrievers.crawler.robots import MAX_CRAWL_DELAY_S

_SMOOTHING = 0.3
_QUICK_S = 0.5  # up to twice that no answer is slow: networks and machines waver
_TOLERANCE = 2.0  # times as slow as its best answer is no slowdown yet: pages differ
_NUM_GOOD_TO_RECOVER = 8
_MAX_CUTS = 5
_MAX_ORIGINS = 10_000  # beyond it, origins that are idle are forgotten


@dataclass(slots=True)
class _Origin:
    delay_s: float
    max_active: int = 1
    num_active: int = 0
    started_s: float = -math.inf  # the last request
    next_start_s: float = -math.inf  # by the distance that starts keep
    rests_until_s: float = -math.inf  # by a failure
    shut_until_s: float = -math.inf
    best_latency_s: float = math.inf
    latency_s: float = 0.0  # smoothed
    num_cuts: int = 0  # how often its slots were halved, less how often they were doubled again
    num_good: int = 0  # answers since the last change of num_cuts


class Politeness:
    """Slots and pauses of each origin: at most ``max_active`` requests at once, starts at least ``delay_s`` apart.

    A host that fails or slows down gets fewer at once, and its slots back as it recovers. Where less than one slot would be
    left, starts keep a distance that follows the response time.
    """

    def __init__(self, *, max_active: int, delay_s: float) -> None:
        self._max_active = max_active
        self._delay_s = delay_s
        self._origins: dict[str, _Origin] = {}

    def wait_s(self, origin: str, now_s: float) -> float:
        """Seconds until a request may start: 0 for now, infinite while every slot is taken."""
        state = self._origins.get(origin)
        if state is None:
            return 0.0
        if state.num_active >= _num_slots(state):
            return math.inf
        return max(0.0, max(state.next_start_s, state.rests_until_s) - now_s)

    def start(self, origin: str, now_s: float) -> None:
        """Take a slot. :meth:`end` must follow."""
        if origin not in self._origins:
            self._forget_idle(now_s)
        state = self._origins.setdefault(origin, _Origin(self._delay_s))
        state.num_active += 1
        state.started_s = now_s
        state.next_start_s = now_s + max(state.delay_s, _pace_s(state))

    def spared(self, origin: str, started_s: float) -> None:
        """The request that took its slot at ``started_s`` was not needed: nor is the distance to it, if it was the last."""
        state = self._origins[origin]
        if state.started_s == started_s:
            state.next_start_s = started_s

    def learn(self, origin: str, crawl_delay_s: float, now_s: float) -> None:
        """The robots.txt of ``origin`` is known, and the request that waited for it starts now. Its slot must be held."""
        state = self._origins[origin]
        state.max_active = self._max_active
        state.delay_s = max(self._delay_s, crawl_delay_s)
        state.next_start_s = max(state.next_start_s, now_s + state.delay_s)

    def end(self, origin: str) -> None:
        """Give a slot back."""
        self._origins[origin].num_active -= 1

    def shut_s(self, origin: str, now_s: float) -> float:
        """For how many more seconds the host asked to be left alone, where that is longer than a crawl waits; else 0."""
        state = self._origins.get(origin)
        return 0.0 if state is None else max(0.0, state.shut_until_s - now_s)

    def answered(self, origin: str, latency_s: float) -> None:
        """The host gave a page after this many seconds. Where it gets slower, fewer requests go there at once."""
        state = self._origins[origin]
        state.latency_s += _SMOOTHING * (latency_s - state.latency_s) if state.latency_s else latency_s
        state.best_latency_s = min(state.best_latency_s, max(latency_s, _QUICK_S))
        state.num_good += 1
        if state.num_cuts and state.num_good >= _NUM_GOOD_TO_RECOVER:
            state.num_cuts -= 1
            state.num_good = 0

    def overloaded(self, origin: str, wait_s: float, now_s: float) -> None:
        """The host could not answer: none goes there for ``wait_s`` seconds, and half as many at once after that.

        Longer than a crawl waits, it counts as shut: :meth:`wait_s` says 0, for its pages to be skipped.
        """
        state = self._origins[origin]
        if wait_s > MAX_WAIT_S:
            state.shut_until_s = max(state.shut_until_s, now_s + wait_s)
        else:
            state.rests_until_s = max(state.rests_until_s, now_s + wait_s)
        state.num_cuts = min(state.num_cuts + 1, _MAX_CUTS)
        state.num_good = 0

    def _forget_idle(self, now_s: float) -> None:
        if len(self._origins) >= _MAX_ORIGINS:
            self._origins = {
                o: state
                for o, state in self._origins.items()
                if state.num_active or max(state.next_start_s, state.rests_until_s, state.shut_until_s) > now_s
            }


def _num_slots(state: _Origin) -> int:
    """How many requests may be on their way."""
    return max(1, int(_share(state)))


def _pace_s(state: _Origin) -> float:
    """Seconds between two starts at a host that has less than one slot: it is idle for the rest of the time."""
    return min(MAX_CRAWL_DELAY_S, state.latency_s / share) if (share := _share(state)) < 1 else 0.0


def _share(state: _Origin) -> float:
    """Slots that the host has, in parts: fewer the more it fails, and the slower it is than at its best."""
    slowdown = state.latency_s / (_TOLERANCE * state.best_latency_s) if state.latency_s else 1.0
    return max(1, state.max_active >> state.num_cuts) / max(1.0, slowdown)
