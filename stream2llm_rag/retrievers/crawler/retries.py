"""When a page that could not be had is asked for again. Pure: it is told the time.

stamina does not fit in here: it sleeps in the task that tries, and a page that did so would keep its place in the crawl. Here
the page goes back to the frontier, others take its place, its whole host rests, and Retry-After counts. What breaks off on a
connection that was kept open aiohttp tries again by itself.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

MAX_RETRIES = 2
MAX_WAIT_S = 20.0  # a host that asks for more is left alone, for as long as it asks
_FIRST_WAIT_S = 1.0
TRANSIENT = frozenset({429, 500, 502, 503, 504})
"""Statuses after which another try can help (RFC 6585, RFC 9110)."""


def parse_retry_after(value: str | None, now_s: float) -> float:
    """Seconds that a Retry-After header asks to wait (RFC 9110, 10.2.3); 0 where it is missing or makes no sense.

    ``now_s`` is the time of the day in seconds since the epoch, to compare a date with.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return 0.0


def wait_before_retry_s(num_retries: int, asked_s: float, jitter: float) -> float:
    """Seconds until the next try: what the host asked, or twice as long each time; a ``jitter`` from 0 to 1 spreads it."""
    doubled_s = _FIRST_WAIT_S * float(2**num_retries)
    return max(asked_s, doubled_s * (0.5 + 0.5 * jitter))
