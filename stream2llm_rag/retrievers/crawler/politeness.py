"""How hard a crawler may ask each host, over all streams that share it. Pure: it is told the time.

A host is an origin (``scheme://host:port``). As long as its robots.txt is not known, one request at a time goes there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_ORIGINS = 10_000  # beyond it, origins that are idle are forgotten


@dataclass(slots=True)
class _Origin:
    delay_s: float
    max_active: int = 1
    num_active: int = 0
    ready_at_s: float = -math.inf


class Politeness:
    """Slots and pauses of each origin: at most ``max_active`` requests at once, starts at least ``delay_s`` apart."""

    def __init__(self, *, max_active: int, delay_s: float) -> None:
        self._max_active = max_active
        self._delay_s = delay_s
        self._origins: dict[str, _Origin] = {}

    def wait_s(self, origin: str, now_s: float) -> float:
        """Seconds until a request may start: 0 for now, infinite while every slot is taken."""
        state = self._origins.get(origin)
        if state is None:
            return 0.0
        if state.num_active >= state.max_active:
            return math.inf
        return max(0.0, state.ready_at_s - now_s)

    def start(self, origin: str, now_s: float) -> None:
        """Take a slot. :meth:`end` must follow."""
        if origin not in self._origins:
            self._forget_idle(now_s)
        state = self._origins.setdefault(origin, _Origin(self._delay_s))
        state.num_active += 1
        state.ready_at_s = now_s + state.delay_s

    def learn(self, origin: str, crawl_delay_s: float, now_s: float) -> None:
        """The robots.txt of ``origin`` is known, and the request that waited for it starts now. Its slot must be held."""
        state = self._origins[origin]
        state.max_active = self._max_active
        state.delay_s = max(self._delay_s, crawl_delay_s)
        state.ready_at_s = max(state.ready_at_s, now_s + state.delay_s)

    def end(self, origin: str) -> None:
        """Give a slot back."""
        self._origins[origin].num_active -= 1

    def _forget_idle(self, now_s: float) -> None:
        if len(self._origins) >= _MAX_ORIGINS:
            self._origins = {o: state for o, state in self._origins.items() if state.num_active or state.ready_at_s > now_s}
