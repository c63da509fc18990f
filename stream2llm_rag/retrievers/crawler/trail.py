"""Where a crawl goes next: seeds, links, lists and redirects, within its scope and depth. Pure: opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.retrievers.crawler.frontier import Frontier, Target
from stream2llm_rag.retrievers.crawler.pages import Outline, PageSkippedError, Skip
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, Scope, key_of, site_of

MAX_REDIRECTS = 5
_INHERITED = 0.5  # what the promise of a page counts for its links, beside what it says of them (shark-search, Hersovici 1998)


class Trail:
    """The frontier of one crawl, and what may enter it.

    Holds at most ``max_urls`` URLs. ``failed_seeds`` says of each seed why it gave no page, as long as it gave none.
    """

    def __init__(self, scope: Scope, *, max_depth: int, max_urls: int) -> None:
        self.failed_seeds: dict[str, str] = {}
        self._scope = scope
        self._max_depth = max_depth
        self._frontier = Frontier(max_urls=max_urls)

    def __len__(self) -> int:
        return len(self._frontier)

    def pop(self, wait_s: Callable[[str], float]) -> Target | None:
        """The next target; see :meth:`.Frontier.pop`."""
        return self._frontier.pop(wait_s)

    def next_ready_s(self, wait_s: Callable[[str], float]) -> float:
        """Seconds until there is one by time alone; see :meth:`.Frontier.next_ready_s`."""
        return self._frontier.next_ready_s(wait_s)

    def add_seeds(self, seeds: Iterable[CanonicalUrl]) -> None:
        """Start from these pages, sitemaps or feeds too, whatever the scope says."""
        for seed in seeds:
            self.failed_seeds.setdefault(seed, "it was not reached within the limits of the crawl")
            self._frontier.add(Target(seed, key_of(seed), seed=seed, may_list=True))

    def add_found(self, urls: list[CanonicalUrl]) -> None:
        """Start from what a search found: its sites join the scope."""
        self._scope = self._scope.including(urls)
        self.add_seeds(urls)

    def follow_links(self, target: Target, outline: Outline) -> None:
        """Queue the links of a page, as deep as the crawl may go."""
        if target.depth < self._max_depth:
            self._queue(outline, depth=target.depth + 1, inherited=target.score)

    def follow_list(self, target: Target, outline: Outline) -> None:
        """The pages of a sitemap or feed stand in for it. A list in a list is read, but none in that one (sitemaps.org)."""
        self._queue(outline, depth=target.depth, inherited=target.score, may_list=target.seed is not None)

    def follow_redirect(self, target: Target, location: CanonicalUrl, steps: Iterable[RetrievalEvent] = ()) -> None:
        """Queue where a redirect leads, so that it meets every check that a link meets. PageSkippedError where it fails one.

        ``steps`` are what was done so far.
        """
        if target.num_redirects >= MAX_REDIRECTS:
            raise PageSkippedError(Skip.REDIRECT, f"more than {MAX_REDIRECTS} redirects")
        if reason := self._scope.refusal(location):
            raise PageSkippedError(Skip.SCOPE, f"it redirects to {location}, and {reason}")
        if self._frontier.is_closed(location):
            raise PageSkippedError(Skip.HOST_LIMIT, f"it redirects to {location}, whose host has given all that one may")
        num_redirects, key = target.num_redirects + 1, key_of(location)
        onward = replace(target, url=location, key=key, num_redirects=num_redirects, steps=tuple(steps))
        if not self._frontier.add(onward):
            raise PageSkippedError(Skip.REDIRECT, f"it redirects to {location}, which the crawl met before")

    def put_back(self, target: Target) -> None:
        """Queue ``target`` to be tried once more."""
        self._frontier.put_back(replace(target, num_retries=target.num_retries + 1))

    def close(self, origin: str) -> None:
        """Go to ``origin`` no more: it has given all that it may."""
        self._frontier.close(origin)

    def source_of(self, url: CanonicalUrl, outline: Outline) -> CanonicalUrl:
        """The address that a page claims for itself, where it may: on its own site and within the scope."""
        claimed = outline.canonical
        if claimed is not None and site_of(claimed) == site_of(url) and self._scope.refusal(claimed) is None:
            return claimed
        return url

    def settle(self, target: Target, source: CanonicalUrl) -> None:
        """Note that a page is done with. PageSkippedError where it came before, under this or another address."""
        if not self._frontier.settle(target.key, key_of(source)):
            raise PageSkippedError(Skip.DUPLICATE, f"it is another address of {source}")

    def _queue(self, outline: Outline, *, depth: int, inherited: float, may_list: bool = False) -> None:
        for url, own in outline.links:
            if self._scope.refusal(url) is None:
                score = (own + _INHERITED * inherited) / (1 + _INHERITED)
                self._frontier.add(Target(url, key_of(url), depth, score=score, may_list=may_list))
