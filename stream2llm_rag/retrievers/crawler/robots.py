"""What a robots.txt permits (RFC 9309). Pure: it is given the answer that a server gave."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from protego import Protego

MAX_ROBOTS_BYTES = 512_000  # RFC 9309 section 2.5 asks for at least 500 KiB
LONG_ROBOTS_BYTES = 10_000  # from here on to parse it, or to match a URL, may take long: the longest 1.5 s to parse
MAX_ROBOTS_REDIRECTS = 5  # section 2.3.1.2
MAX_CRAWL_DELAY_S = 10.0  # Crawl-delay is no part of the RFC; more than this would stall a question for good


@dataclass(frozen=True, slots=True)
class RobotsRules:
    """The rules of one origin for one crawler.

    ``parser`` is None where nothing was read; then ``unreachable`` says why everything is disallowed, or is None where all is
    allowed. ``crawl_delay_s`` is the pause in seconds that the site asks for between requests, capped.
    """

    user_agent: str
    parser: Protego | None = None
    unreachable: str | None = None
    crawl_delay_s: float = 0.0
    num_bytes: int = 0
    """Of the file that they were read from. In memory they take up to thirty times as many."""

    @property
    def is_long(self) -> bool:
        """Whether to match a URL may take long enough to be done off the event loop."""
        return self.num_bytes >= LONG_ROBOTS_BYTES

    @property
    def summary(self) -> str | None:
        """What is special about them, in a few words; None for nothing."""
        if self.unreachable is not None:
            return f"could not be read: {self.unreachable}"
        return f"asks for {self.crawl_delay_s:g} s between requests" if self.crawl_delay_s else None

    def refusal(self, url: str) -> str | None:
        """Why ``url`` may not be fetched; None where it may."""
        if self.unreachable is not None:
            return f"robots.txt could not be read ({self.unreachable}), so nothing there may be fetched"
        if self.parser is not None and not self.parser.can_fetch(url, self.user_agent):
            return "robots.txt disallows it"
        return None


def rules_from_answer(status: int, body: bytes, user_agent: str) -> RobotsRules:
    """The rules that follow from the last HTTP status and, for 2xx, the body, of which the first MAX_ROBOTS_BYTES count."""
    if 200 <= status < 300:
        return _parse(body, user_agent)
    # Section 2.3.1.3, "unavailable": a 4xx, or redirects without end. By the letter 429 is one, but it asks for less.
    if status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS:
        return RobotsRules(user_agent)
    return RobotsRules(user_agent, unreachable=f"HTTP {status}")  # section 2.3.1.4, "unreachable"


def _parse(body: bytes, user_agent: str) -> RobotsRules:
    num_bytes = len(body)
    if num_bytes >= MAX_ROBOTS_BYTES:  # the last line may be cut, and half a path is another rule
        body = body[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]
    parser = Protego.parse(body.decode("utf-8-sig", "replace"))
    delay_s = parser.crawl_delay(user_agent) or 0.0
    return RobotsRules(user_agent, parser, crawl_delay_s=min(delay_s, MAX_CRAWL_DELAY_S), num_bytes=num_bytes)
