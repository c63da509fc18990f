"""Pages that do what a crawler must survive, and what it must say of each.

Each trap has a host of its own, so that the manners that one brings about do not cost the others. Its pages are
``/<name>/<copy>`` and what they lead to lies below; ``request.path`` is all that a trap knows of itself.
"""

from __future__ import annotations

from functools import cache

from tests.sites.traps.answers import COMES, Answer, Trap
from tests.sites.traps.content import charsets, markup, pages
from tests.sites.traps.rules import robots_files, words_to_caches
from tests.sites.traps.transport import broken_answers, large_ones, overload, redirects, slow_ones

__all__ = ["COMES", "Answer", "Trap", "all_traps"]

_GROUPS = (slow_ones, large_ones, redirects, charsets, markup, overload, broken_answers, robots_files, words_to_caches, pages)


@cache
def all_traps() -> tuple[Trap, ...]:
    """One of each kind."""
    return tuple(Trap(*each) for group in _GROUPS for each in group())
