"""The robots.txt of every origin that a crawler met, fetched once in a while and kept."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from stream2llm_rag.retrievers.crawler.robots import RobotsRules

_KEEP_S = 24 * 3600.0  # RFC 9309 section 2.4: no longer than 24 hours
_KEEP_UNREACHABLE_S = 60.0  # a server that was down may be back
_MAX_ORIGINS = 1_000


class RobotsCache:
    """Rules by origin; the one used longest ago makes room when there are too many."""

    def __init__(self, fetch: Callable[[str], Awaitable[RobotsRules]], clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, RobotsRules]] = OrderedDict()

    async def rules(self, origin: str) -> RobotsRules:
        """The rules of ``origin``. Politeness sends one request at a time to an origin unknown so far, so no two fetch them."""
        until_s, rules = self._kept.get(origin, (0.0, None))
        if rules is None or until_s <= self._clock():
            rules = await self._fetch(origin)
            keep_s = _KEEP_S if rules.unreachable is None else _KEEP_UNREACHABLE_S
            self._kept[origin] = (self._clock() + keep_s, rules)
            if len(self._kept) > _MAX_ORIGINS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(origin)
        return rules
