"""The robots.txt of every origin that a crawler met, fetched once in a while and kept."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from stream2llm_rag.retrievers.crawler.robots import RobotsRules

_KEEP_S = 24 * 3600.0  # RFC 9309 section 2.4: no longer than 24 hours
_KEEP_UNREACHABLE_S = 60.0  # a server that was down may be back
_MAX_ORIGINS = 1_000
_MAX_BYTES = 2_000_000  # of robots.txt: a usual one has a thousand or two, and the longest 512,000


class RobotsCache:
    """Rules by origin; those used longest ago make room where there are too many, or too long ones."""

    def __init__(self, fetch: Callable[[str], Awaitable[RobotsRules]], clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, RobotsRules]] = OrderedDict()
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def rules(self, origin: str) -> RobotsRules:
        """The rules of ``origin``: fetched once, however many ask for them."""
        lock = self._fetching.setdefault(origin, asyncio.Lock())
        async with lock:
            until_s, rules = self._kept.get(origin, (0.0, None))
            if rules is None or until_s <= self._clock():
                rules = await self._fetch(origin)
                keep_s = _KEEP_S if rules.unreachable is None else _KEEP_UNREACHABLE_S
                self._kept.pop(origin, None)  # to come last
                self._kept[origin] = (self._clock() + keep_s, rules)
                self._make_room()
            else:
                self._kept.move_to_end(origin)
        return rules

    def _make_room(self) -> None:
        num_bytes = sum(rules.num_bytes for _, rules in self._kept.values())
        while len(self._kept) > _MAX_ORIGINS or num_bytes > _MAX_BYTES:
            _, (_, rules) = self._kept.popitem(last=False)
            num_bytes -= rules.num_bytes
