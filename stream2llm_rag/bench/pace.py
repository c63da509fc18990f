"""Real time of one round, and who watches that it does not stand still."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio


class Pace:
    """The clock of one round, in seconds since it was made. ``lateness_s`` has by how much each moment was missed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.started_s = clock()
        self.lateness_s: list[float] = []

    def now(self) -> float:
        """Seconds since the round began."""
        return self._clock() - self.started_s

    async def until(self, at_s: float) -> None:
        """Wait until ``at_s``."""
        await anyio.sleep(max(0.0, at_s - self.now()))
        self.lateness_s.append(self.now() - at_s)


class StallWatch:
    """Tells an engine that stands still from one that has nothing to do. Times are seconds since the round began.

    It stands still when a request has its whole context, and for ``limit_s`` no step computes anything and nobody gets a token.
    A single step must not take that long.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._last_progress_s = 0.0
        self._waiting: dict[str, float] = {}

    def expect(self, query_id: str, at_s: float) -> None:
        """From ``at_s`` on the request has its whole context."""
        self._waiting[query_id] = at_s

    def saw_progress(self, at_s: float) -> None:
        """Something was computed, or somebody got a token."""
        self._last_progress_s = at_s

    def saw_end(self, query_id: str) -> None:
        """The request waits no more."""
        self._waiting.pop(query_id, None)

    def stalls_at(self) -> float | None:
        """When it will have stood still for too long, if nothing comes; None while nobody waits."""
        if not self._waiting:
            return None
        return max(self._last_progress_s, min(self._waiting.values())) + self.limit_s

    async def until_stalled(self, now: Callable[[], float]) -> None:
        """Return when the engine has stood still for too long, by the clock ``now``."""
        while (at_s := self.stalls_at()) is None or at_s > now():  # noqa: ASYNC110 - the moment moves on with all progress
            await anyio.sleep(self.limit_s if at_s is None else at_s - now())
