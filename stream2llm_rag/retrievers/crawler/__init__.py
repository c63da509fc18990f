"""A crawler that yields pages as they finish. Needs the ``crawl`` extra."""

import importlib.util

from stream2llm_rag.errors import MissingExtraError

# Some of these only the extraction processes import, where a missing one would show late.
for _module in (
    "aiohttp",
    "courlan",
    "hishel",
    "htmldate",
    "lxml",
    "lxml_html_clean",
    "prometheus_client",
    "protego",
    "pypdf",
    "rank_bm25",
    "resiliparse",
    "trafilatura",
    "w3lib",
):
    if importlib.util.find_spec(_module) is None:
        raise MissingExtraError(f"{_module}, which WebCrawler needs,", "crawl")

from stream2llm_rag.retrievers.crawler.crawler import WebCrawler  # noqa: E402 - only after the check above
from stream2llm_rag.retrievers.crawler.page_cache import PageCache  # noqa: E402
from stream2llm_rag.retrievers.crawler.search import (  # noqa: E402
    FunctionSearch,
    InMemorySearch,
    SearchHit,
    SearchProvider,
    SearxNG,
)
from stream2llm_rag.retrievers.crawler.stream import CrawlStream  # noqa: E402

__all__ = [
    "CrawlStream",
    "FunctionSearch",
    "InMemorySearch",
    "PageCache",
    "SearchHit",
    "SearchProvider",
    "SearxNG",
    "WebCrawler",
]
