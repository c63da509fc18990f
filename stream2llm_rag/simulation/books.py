"""Books of a simulated run, kept from what was sent and scheduled alone, against which the scheduler is checked.

For each request they know how many tokens from the front have KV, and so which step may compute what. A scheduler that loses KV
without saying so, computes what nobody sent, reads KV that is not there, leaks blocks, or answers other than it was asked
breaks the books: then :class:`ConservationError` is raised. In the end, for each answered request,

    computed + cached = prompt + output - 1 + invalidated + evicted

where what came back from host memory counts as cached

(the last token of an answer is never computed), and all that steps computed was computed for some request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stream2llm_rag.errors import ConservationError
from stream2llm_rag.simulation.records import RequestRecord
from stream2llm_rag.simulation.trace import Query


def require(holds: bool, message: str) -> None:
    """Raise :class:`ConservationError` unless it ``holds``."""
    if not holds:
        raise ConservationError(message)


@dataclass(slots=True)
class RequestBook:
    """What is known of one query's request; ``number`` is the query's in its trace.

    ``num_sent`` tokens make up its prompt so far. The first ``num_kv`` have KV; ``num_known`` of the present prompt had it at
    some time, so that the prefix cache may still have it. ``is_reported`` says whether the scheduler reports each loss of KV;
    else a loss shows when the request runs again.
    """

    query: Query
    number: int
    is_reported: bool = True
    num_sent: int = 0
    is_final: bool = False
    num_kv: int = 0
    num_known: int = 0
    num_sampled: int = 0
    num_output: int = 0
    num_computed: int = 0
    num_overlap: int = 0
    num_cached: int = 0
    num_invalidated: int = 0
    num_evicted: int = 0
    num_evictions: int = 0
    num_discarded: int = 0
    first_token_s: float = math.inf
    finished_s: float = math.inf

    def sent(self, index: int) -> None:
        """The request's prompt is now that of chunk ``index``; what that invalidated has been reported."""
        chunk = self.query.chunks[index]
        self.num_sent = self.query.prompt_lengths[index]
        self.is_final = index == len(self.query.chunks) - 1
        if chunk.num_kept is not None:
            self.num_known = min(self.num_known, chunk.num_kept)
        require(self.num_kv <= self.num_known, f"{self._name} keeps KV of {self.num_kv} tokens, {self.num_known} are valid")

    def restarted(self) -> None:
        """The request was aborted, to be sent anew."""
        self.invalidated(self.num_kv)
        self.num_sampled = 0

    def final_came(self) -> None:
        """The final context has been sent."""
        self.num_overlap = self.num_kv

    def invalidated(self, num_tokens: int) -> None:
        """The change of the prompt cost the KV of the last ``num_tokens`` that had it."""
        self._lose(num_tokens)
        self.num_invalidated += num_tokens

    def evicted(self, num_tokens: int) -> None:
        """The last ``num_tokens`` that had KV gave it up for other requests."""
        self._lose(num_tokens)
        self.num_evicted += num_tokens
        self.num_evictions += 1

    def returned(self, num_tokens: int) -> None:
        """The next ``num_tokens`` have KV again, which host memory or the prefix cache had kept."""
        self.num_kv += num_tokens
        self.num_cached += num_tokens
        require(self.num_kv <= self.num_known, f"{self._name} gets KV of {self.num_kv} tokens, {self.num_known} are valid")

    def scheduled(self, start: int, num_tokens: int, *, prefix_caching: bool, holds_back: bool) -> bool:
        """A step computes ``num_tokens`` from position ``start`` on. Returns whether it samples a token.

        A partial request samples none where the front end ``holds_back`` its last token.
        """
        if start < self.num_kv:
            require(not self.is_reported, f"{self._name} lost the KV of {self.num_kv - start} tokens without a report")
            self.evicted(self.num_kv - start)
        num_hit = start - self.num_kv
        require(num_hit == 0 or (prefix_caching and start <= self.num_known), f"{self._name} reads KV that was never computed")
        end = start + num_tokens
        num_tokens_known = self.num_sent + self.num_sampled
        require(num_tokens > 0 and end <= num_tokens_known, f"{self._name} computes up to {end} of {num_tokens_known} tokens")
        self.num_cached += num_hit
        self.num_computed += num_tokens
        self.num_kv, self.num_known = end, max(self.num_known, end)
        samples = end == num_tokens_known
        require(self.is_final or not (samples and holds_back), f"{self._name} samples before its final context")
        self.num_sampled += samples
        return samples

    def answered(self, num_tokens: int, finished: bool, now: float) -> None:
        """Tokens of the answer came out."""
        require(self.finished_s == math.inf, f"{self._name} goes on after its end")
        if num_tokens and self.num_output == 0:
            self.first_token_s = now
        self.num_output += num_tokens
        if finished:
            self.finished_s = now
            self._close()

    def record(self) -> RequestRecord:
        """What became of it."""
        query = self.query
        return RequestRecord(
            query_id=query.query_id,
            arrival_s=query.arrival_s,
            final_s=query.final_s,
            num_prompt_tokens=query.num_prompt_tokens,
            first_token_s=self.first_token_s,
            finished_s=self.finished_s,
            num_output_tokens=self.num_output,
            num_computed=self.num_computed,
            num_overlap=self.num_overlap,
            num_cached=self.num_cached,
            num_invalidated=self.num_invalidated,
            num_evicted=self.num_evicted,
            num_evictions=self.num_evictions,
            num_discarded=self.num_discarded,
        )

    @property
    def _name(self) -> str:
        return f"request {self.query.query_id}"

    def _lose(self, num_tokens: int) -> None:
        require(0 <= num_tokens <= self.num_kv, f"{self._name} loses the KV of {num_tokens} tokens, but has {self.num_kv}")
        self.num_kv -= num_tokens

    def _close(self) -> None:
        """Check the answered request. KV that it lost when its last token was on the way need not be computed again."""
        asked = self.query.num_output_tokens
        require(self.num_output == asked, f"{self._name} answers {self.num_output} tokens, {asked} were asked for")
        require(self.num_sampled == asked, f"{self._name} answers {asked} tokens, but sampled {self.num_sampled}")
        num_late = self.query.num_prompt_tokens + asked - 1 - self.num_kv
        require(0 <= num_late <= self.num_evicted, f"{self._name} ends with KV of {self.num_kv} tokens, {num_late} are missing")
        self.num_evicted -= num_late
        gained, lost = self.num_computed + self.num_cached, self.num_invalidated + self.num_evicted
        needed = self.query.num_prompt_tokens + asked - 1 + lost
        require(gained == needed, f"{self._name} has computed or cached {gained} tokens, needed were {needed}")
