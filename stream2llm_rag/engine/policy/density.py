"""Survival-value density: hold the blocks that will save the most computation for the time that they are held.

What a complete request waits for is the work that was not computed ahead, or no longer held: so the complete ones are served
shortest remaining work first, and the pool is a cache whose next use is the final context. A block is worth the seconds that it
saves, by the probability that no update drops it, over the time until then. ``docs/policies.md`` has the argument.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from stream2llm_rag.engine.policy.base import LiveRequest, Policy, Rank, Rules
from stream2llm_rag.engine.policy.learning import StreamingTimes, Survival, TokenTime

# A complete request may be overtaken for so many times its own remaining work: without a bound long ones would starve.
PATIENCE = 10.0
# Seconds a token before the first step was seen, and what each token of context adds, as a share: Llama-3.1-8B on two H200.
TOKEN_S = 14e-6
ATTENTION_SHARE = 3.5e-5
# Under so few samples of a kind, a request that has had fewer pieces is asked instead.
MIN_SAMPLES, FEW_SAMPLES = 12, 6
MAX_PIECES = 15
MIN_EXPECTED_S = 1e-3
UNKNOWN_S = 1000.0
UNKNOWN = (0.0, -math.inf)
# A value is good for this share of the expected time.
SHELF_LIFE = 0.02


@dataclass(slots=True)
class _Seen:
    """What is known of a streaming request: when its pieces came, and how many it then still expected."""

    opened_at: float
    pieces: list[tuple[float, int | None]] = field(default_factory=list)
    updates: bool = False


class Density(Policy):
    """Complete requests by final context and remaining work; partial ones by what their blocks are worth a second."""

    rules = Rules(
        evicts_tails=True,
        takes_part=True,
        displaces=0.8,  # without a margin two of like worth take turns, and recomputation triples
        reserved_share=0.02,
        partial_budget=1024,
        partials_wait=True,
    )

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._times = StreamingTimes()
        self._survival = Survival()
        self._token_time = TokenTime(TOKEN_S)
        self._values: dict[str, tuple[float, float]] = {}  # by request, with the time until which each is good

    def rank(self, request: LiveRequest, now: float) -> Rank:
        """Complete ones first, by when they became so plus ten times what is left to compute; then the partial ones."""
        if request.partial:
            return (1.0, -self.worth(request, request.num_computed, now))
        work = _work(request.num_target) - _work(request.num_computed)
        return (0.0, request.last_chunk_at + PATIENCE * work * self._token_time.seconds)

    def worth(self, request: LiveRequest, num_tokens: int, now: float) -> float:
        """Work saved by a token of the request, for each second that it must be held, if it survives."""
        if not request.partial:
            return math.inf
        value, until = self._values.get(request.request_id, UNKNOWN)
        if now > until:
            value, _ = self._values[request.request_id] = self._value(request, now)
        seen = self._seen.get(request.request_id)
        if seen is None or not seen.updates:
            return value
        return value * self._survival.at(num_tokens / (request.num_target + 1))

    def saw_chunk(self, request_id: str, now: float, num_tokens: int, num_remaining: int | None) -> None:
        """Note the piece."""
        self._seen.setdefault(request_id, _Seen(now)).pieces.append((now, num_remaining))
        self._values.pop(request_id, None)

    def saw_update(self, request_id: str, now: float, kept_share: float) -> None:
        """Learn where updates change prompts."""
        self._survival.add(kept_share)
        if request_id in self._seen:
            self._seen[request_id].updates = True

    def saw_final(self, request_id: str, now: float) -> None:
        """Learn how long the request streamed on after each of its pieces."""
        seen = self._seen.get(request_id)
        if seen is None:
            return
        for index, (at, num_remaining) in enumerate(seen.pieces):
            self._times.add((seen.updates, min(index, MAX_PIECES)), now - at)
            if num_remaining is not None:
                self._times.add(("remaining", seen.updates, min(num_remaining, MAX_PIECES)), now - at)

    def saw_step(self, num_tokens: int, duration_s: float) -> None:
        """Learn how fast this engine is."""
        self._token_time.add(num_tokens, duration_s)

    def saw_end(self, request_id: str) -> None:
        """Forget the request."""
        self._seen.pop(request_id, None)
        self._values.pop(request_id, None)

    def _value(self, request: LiveRequest, now: float) -> tuple[float, float]:
        """The value, and until when it is good: expectations of many seconds need not be asked anew in each step."""
        num_tokens = max(1, request.num_target)
        expected_s = max(MIN_EXPECTED_S, self._expected_s(request, now))
        return _work(num_tokens) / num_tokens / expected_s, now + SHELF_LIFE * expected_s

    def _expected_s(self, request: LiveRequest, now: float) -> float:
        """Expected seconds until the final context."""
        seen = self._seen.get(request.request_id)
        if seen is None or not seen.pieces:
            return UNKNOWN_S
        at, num_remaining = seen.pieces[-1]
        key = self._key(seen, num_remaining)
        if key is None:
            return UNKNOWN_S / (1.0 + now - seen.opened_at)  # whoever has streamed for longest is probably done first
        return self._times.expected_s(key, now - at)

    def _key(self, seen: _Seen, num_remaining: int | None) -> Hashable | None:
        """The kind of streams to learn from that is nearest to this one, and was seen often enough."""
        if num_remaining is not None:
            key = ("remaining", seen.updates, min(num_remaining, MAX_PIECES))
            if self._times.num_seen(key) >= FEW_SAMPLES:
                return key
        index = min(len(seen.pieces) - 1, MAX_PIECES)
        while index > 0 and self._times.num_seen((seen.updates, index)) < MIN_SAMPLES:
            index -= 1
        return (seen.updates, index) if self._times.num_seen((seen.updates, index)) >= FEW_SAMPLES else None


def _work(num_tokens: int) -> float:
    """Work to compute a prompt from its start, in units of a token without context: attention makes later ones dearer."""
    return num_tokens * (1.0 + ATTENTION_SHARE * num_tokens / 2)
