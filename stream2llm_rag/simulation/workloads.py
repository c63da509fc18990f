"""The two workloads of the Stream2LLM paper (arXiv 2604.16395), drawn at random so that they match its tables. Pure.

The paper's artifact tabulates events per query, gaps between events, tokens, and seconds of retrieval; what is drawn here comes
within 10% of each median, P75 and P95, of the means too, and tests hold it there. What the tables leave open is assumed:

* how a crawl's tokens spread over its pages: all ways to cut them are equally likely. The last page then has a median of 600
  tokens and a P99 of 16,000, which fits the paper's TTFT at 0.5 queries a second, where little but the last page is computed;
* which prefix an update keeps: 91% in the mean in the early burst, and half of it, give or take 15%, at the end. With that the
  TTFT of streaming at 0.25 queries a second comes within 20% of the paper's, and more than 10% of the requests invalidate over
  10,000 tokens, as in the paper. With shorter prefixes in the burst it would be half of them;
* the longest ANNS prompts: the paper's P99 of 3.1 s at 0.25 queries a second takes prompts of 76,000 tokens, more than a
  lognormal tail has.

The queries of a seed are the same for every rate and delay: what changes is when they come. So results at several rates can be
compared query by query.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from random import Random

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.distributions import Quantiles, arrivals, lognormal, normal, share_kept, split
from stream2llm_rag.simulation.trace import Chunk, Query, Trace

NUM_QUESTION_TOKENS = 32

_CRAWL_GAP_S = Quantiles({0: 0.02, 0.05: 0.082, 0.25: 0.387, 0.5: 0.701, 0.75: 1.34, 0.95: 3.078, 0.99: 5.293, 1: 12})
_CRAWL_TOKENS = Quantiles({0: 150, 0.05: 1165, 0.25: 2990, 0.5: 5749, 0.75: 11167, 0.95: 28372, 0.99: 50000, 1: 70000})
_ANNS_GAP_S = Quantiles({0: 3e-4, 0.05: 0.0014, 0.25: 0.011, 0.5: 0.037, 0.75: 0.124, 0.95: 0.699, 0.99: 2.079, 1: 6})
_ANNS_TOKENS = Quantiles({0: 1000, 0.05: 3400, 0.25: 6800, 0.5: 10126, 0.75: 14615, 0.95: 30618, 0.99: 76000, 1: 105000})


def crawler(num_queries: int, qps: float, delay: float = 1.0, seed: int = 0, *, num_output_tokens: int = 1) -> Trace:
    """Web crawls: a search call of 2.6 s, then about 7 pages of about 1,300 tokens each; append mode.

    Queries come ``qps`` a second, as a Poisson process. The gaps between pages are ``delay`` times those of the paper.
    Raises :class:`InvalidInputError` for numbers that are not above zero.
    """
    return _make("crawler", _crawl, num_queries, qps, delay, seed, num_output_tokens)


def anns(num_queries: int, qps: float, delay: float = 1.0, seed: int = 0, *, num_output_tokens: int = 1) -> Trace:
    """Vector searches: a first list of candidates, an early burst of corrections, the last one 3 s later; update mode.

    Each list brings the whole prompt anew, and keeps a prefix of the one before. Arguments and errors as of :func:`crawler`.
    """
    return _make("anns", _search, num_queries, qps, delay, seed, num_output_tokens)


WORKLOADS: dict[str, Callable[..., Trace]] = {"crawler": crawler, "anns": anns}


def _make(
    name: str,
    chunks_of: Callable[[Random, float], list[Chunk]],
    num_queries: int,
    qps: float,
    delay: float,
    seed: int,
    num_output_tokens: int,
) -> Trace:
    for label, value in (
        ("num_queries", num_queries),
        ("qps", qps),
        ("delay", delay),
        ("num_output_tokens", num_output_tokens),
    ):
        if not 0 < value < float("inf"):
            raise InvalidInputError(f"{label} is {value!r}. Write a number above zero.")
    times, content = Random(f"{name}/{seed}/arrivals"), Random(f"{name}/{seed}/content")
    return tuple(
        Query(f"{name}-{seed}-{number}", arrival_s, tuple(chunks_of(content, delay)), num_output_tokens)
        for number, arrival_s in zip(range(num_queries), arrivals(times, qps), strict=False)
    )


def _crawl(random: Random, delay: float) -> list[Chunk]:
    num_pages = max(1, min(16, round(normal(random, 6.86, 2.5))))
    # Pages that are fetched at once come closer together. Factor and power keep both the gaps and their sums near the tables.
    pace = 0.985 * (6.86 / num_pages) ** 0.3
    search_s = lognormal(random, 2.5, 0.3)
    gaps_s = [pace * _CRAWL_GAP_S.draw(random) * delay for _ in range(num_pages)]
    sizes = split(random, round(_CRAWL_TOKENS.draw(random)), num_pages)
    sizes[-1] += NUM_QUESTION_TOKENS
    after_s = accumulate(gaps_s, initial=search_s)
    next(after_s)  # what the search call brings is where to crawl, no context
    return [Chunk(at_s, size) for at_s, size in zip(after_s, sizes, strict=True)]


def _search(random: Random, delay: float) -> list[Chunk]:
    num_updates = max(1, min(25, round(lognormal(random, 4.05, 0.42)) - 1))
    num_tokens = round(_ANNS_TOKENS.draw(random))
    first_s, last_gap_s = lognormal(random, 0.7, 0.6), lognormal(random, 2.6, 0.58)
    gaps_s = [delay * _ANNS_GAP_S.draw(random) for _ in range(num_updates - 1)] + [delay * last_gap_s]
    *early_s, last_s = accumulate(gaps_s, initial=first_s)
    kept = [int(num_tokens * share_kept(random, 0.1)) for _ in early_s[1:]]
    burst = [Chunk(at_s, num_tokens - num_kept, num_kept) for at_s, num_kept in zip(early_s[1:], kept, strict=True)]
    num_kept = int(num_tokens * min(0.98, max(0.02, normal(random, 0.5, 0.15))))
    return [Chunk(first_s, num_tokens), *burst, Chunk(last_s, num_tokens - num_kept + NUM_QUESTION_TOKENS, num_kept)]
