"""A crawl of the whole site, traps and all: ``python -m tests.sites --pages 2000 --copies 3`` prints what became of each trap.

Ends with exit code 1 where a page was lost, came twice, or failed without the reason that it should have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from stream2llm_rag.documents import Append
from stream2llm_rag.retrievers.crawler import WebCrawler
from tests.sites import extractor
from tests.sites.library import QUESTION
from tests.sites.processes import watching
from tests.sites.server import Site, running
from tests.sites.traps import COMES


@dataclass(slots=True)
class Report:
    """What a crawl of the site brought. ``outcomes`` counts, by trap, what was said of its pages; problems are in words."""

    num_pages: int = 0
    num_skipped: int = 0
    num_retries: int = 0
    num_from_cache: int = 0
    elapsed_s: float = 0.0
    peak_bytes: int = 0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def crawl(site: Site, extract: str, page_timeout_s: float, timeout_s: float, cache: Path | None = None) -> list[Append]:
    """Read the whole site."""
    crawler = WebCrawler(
        [site.library.entrance],
        scope="any",
        max_pages=2 * (site.num_pages + len(site.traps())),
        max_depth=6,
        max_page_bytes=1_000_000,
        max_total_bytes=2_000_000_000,
        timeout_s=timeout_s,
        page_timeout_s=page_timeout_s,
        extract_timeout_s=page_timeout_s,
        concurrency=32,
        allow_private_hosts=site.hosts,
        cache=cache,
        extractor=extract,
    )
    async with crawler:
        return [delta async for delta in crawler.stream(QUESTION)]


def judge(site: Site, deltas: list[Append]) -> Report:
    """Compare what was said of each page with what it is."""
    said: dict[str, list[str]] = defaultdict(list)
    report = Report()
    for delta in deltas:
        for document in delta.documents:
            said[document.source].append(f"{COMES} with Straße" if "Straße" in document.text else COMES)
        for event in delta.events:
            report.num_retries += event.kind == "retry"
            report.num_from_cache += any(step.category in ("cache", "confirmed") for step in event.steps)
            if event.kind == "skip":
                said[event.source].append(event.detail)
    report.num_pages = sum(len(delta.documents) for delta in deltas)
    report.num_skipped = sum(map(len, said.values())) - report.num_pages
    report.problems = [*_library_problems(site, said), *_trap_problems(site, said)]
    for url, outcomes in said.items():
        name = urlsplit(url).path.split("/")[1]
        counted = Counter(report.outcomes.get(name, {}))
        report.outcomes[name] = dict(counted + Counter(_without_details(outcome) for outcome in outcomes))
    return report


def _library_problems(site: Site, said: dict[str, list[str]]) -> Iterator[str]:
    for url in site.library.urls():
        if said[url] != [COMES]:
            yield f"{url}: {said[url] or 'nothing was said of it'}"


def _trap_problems(site: Site, said: dict[str, list[str]]) -> Iterator[str]:
    for url, trap in site.traps().items():
        path = urlsplit(url).path
        outcomes = {each: said[each] for each in said if f"{urlsplit(each).path}/".startswith(f"{path}/")}
        if not any(outcomes.values()):
            yield f"{url}: nothing was said of it"
        for each, reasons in outcomes.items():
            if len(reasons) > 1 or not all(re.search(trap.outcome, reason) for reason in reasons):
                yield f"{each}: {reasons}, but it should be {trap.outcome!r}"


def _without_details(outcome: str) -> str:
    """One wording for all pages: without addresses, numbers and what an HTTP library quotes."""
    return re.sub(r"https?://\S+?(?=,|$)", "URL", re.sub(r"(no valid answer: ).*", r"\1…", outcome, flags=re.DOTALL))


def show(report: Report) -> str:
    """A table."""
    said = ((name, outcome, num) for name, outcomes in sorted(report.outcomes.items()) for outcome, num in outcomes.items())
    lines = [f"{num:>6}  {name:24} {outcome}" for name, outcome, num in said]
    counts = f"{report.num_pages} pages ({report.num_from_cache} from the cache), {report.num_skipped} skipped"
    lines += [f"{counts}, {report.num_retries} retries in {report.elapsed_s:.1f} s"]
    lines += [f"peak memory of the crawler's processes: {report.peak_bytes / 1e6:.0f} MB"]
    return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in report.problems)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=2_000, help="ordinary pages")
    parser.add_argument("--copies", type=int, default=3, help="pages of each trap")
    parser.add_argument("--page-timeout-s", type=float, default=4.0)
    parser.add_argument("--timeout-s", type=float, default=900.0)
    parser.add_argument("--cache", type=Path, help="crawl twice, and keep the pages in this folder in between")
    parser.add_argument("--quick", action="store_true", help="take all visible text instead of trafilatura's main text")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    extract = extractor.QUICK if given.quick else extractor.REAL
    with running(Site(given.pages, given.copies)) as site, watching(os.getpid(), except_for=site.pid) as peak:
        started_s = time.monotonic()
        reports = [
            judge(site, asyncio.run(crawl(site, extract, given.page_timeout_s, given.timeout_s, given.cache)))
            for _ in range(2 if given.cache else 1)
        ]
        report = reports[-1]
        report.elapsed_s = time.monotonic() - started_s
    report.problems = [problem for each in reports for problem in each.problems]
    report.peak_bytes = peak.num_bytes
    if given.json:
        given.json.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False))
    print(show(report))
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
