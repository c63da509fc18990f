"""How many pages of each host one crawl takes. Pure."""

from __future__ import annotations

from collections import Counter


class HostQuota:
    """At most ``max_pages`` of each host become documents; None for no such limit.

    A page on its way counts as one that came, so that no more are fetched than can be taken.
    """

    def __init__(self, max_pages: int | None) -> None:
        self._max_pages = max_pages
        self._num_taken: Counter[str] = Counter()  # by origin: those that came, and those on their way
        self._num_pages: Counter[str] = Counter()  # those that came

    def has_room(self, origin: str) -> bool:
        """Whether one more may be started."""
        return self._max_pages is None or self._num_taken[origin] < self._max_pages

    def start(self, origin: str) -> None:
        """A page is on its way; :meth:`end` must follow."""
        self._num_taken[origin] += 1

    def end(self, origin: str, *, is_page: bool) -> bool:
        """It became a page, or none. True where the host has given all that it may."""
        self._num_taken[origin] -= not is_page
        self._num_pages[origin] += is_page
        return self._max_pages is not None and self._num_pages[origin] >= self._max_pages
