"""What every crawler of the comparison shares: its task, the extractor, and how it is timed."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

USER_AGENT = "stream2llm-benchmark/1"
_PROBE_EVERY_S = 0.005
_WARM_UP = "<html><body><article><p>" + "Some words to warm up. " * 50 + "</p></article></body></html>"


@dataclass(frozen=True, slots=True)
class Task:
    """Read all ``num_pages`` of a site, from its ``entrance`` on; ``answer`` is a sentence of the one page that is relevant."""

    entrance: str
    hosts: tuple[str, ...]
    num_pages: int
    question: str
    answer: str
    extractor: str
    num_extractors: int = 2
    concurrency: int = 16
    per_host_concurrency: int = 4


def given_task() -> Task:
    """The one on the command line."""
    return Task(**json.loads(sys.argv[1]))


def trafilatura_text(html: str, url: str) -> str:
    """The extractor of the comparison."""
    import trafilatura

    return trafilatura.extract(html, url=url, favor_recall=True, include_comments=False) or ""


def resiliparse_text(html: str, url: str) -> str:
    """A quicker one, to see the crawlers themselves."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(html, main_content=True)


EXTRACTORS: dict[str, Callable[[str, str], str]] = {"trafilatura": trafilatura_text, "resiliparse": resiliparse_text}


class Pool:
    """Extraction processes for the crawlers that bring none of their own."""

    def __init__(self, task: Task) -> None:
        self._extract = EXTRACTORS[task.extractor]
        self._executor = ProcessPoolExecutor(task.num_extractors, mp_context=get_context("spawn"))
        warm = [self._executor.submit(self._extract, _WARM_UP, "http://h/") for _ in range(4 * task.num_extractors)]
        for each in warm:
            each.result()

    async def text(self, html: str, url: str) -> str:
        """The text of a page."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._extract, html, url)

    def close(self) -> None:
        self._executor.shutdown()


def tree_cpu_s() -> float:
    """CPU seconds of this process and its children, those that have ended included."""
    ended = sum(usage.ru_utime + usage.ru_stime for usage in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))
    children = (pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split())
    return ended + sum(map(_cpu_s, children))


def _cpu_s(pid: str) -> float:
    try:
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)


class Watch:
    """Times a crawl from its construction on, and how late its event loop is for a timer that is due every 5 ms."""

    def __init__(self, task: Task) -> None:
        self._answer = task.answer
        self._started_s = time.monotonic()
        self._loop_cpu_s, self._cpu_s = time.process_time(), tree_cpu_s()
        self._first_relevant_s: float | None = None
        self._num_pages = 0
        self._num_chars = 0
        self._lags_s: list[float] = []
        self._probe = asyncio.ensure_future(self._measure_lag())

    def page(self, text: str) -> None:
        """A page has come with this text."""
        self._num_pages += 1
        self._num_chars += len(text)
        if self._first_relevant_s is None and self._answer in text:
            self._first_relevant_s = time.monotonic() - self._started_s

    async def stop(self) -> Outcome:
        """The crawl is over."""
        elapsed_s = time.monotonic() - self._started_s
        loop_cpu_s, cpu_s = time.process_time() - self._loop_cpu_s, tree_cpu_s() - self._cpu_s
        self._probe.cancel()
        with suppress(asyncio.CancelledError):
            await self._probe
        return Outcome(
            num_pages=self._num_pages,
            num_chars=self._num_chars,
            elapsed_s=elapsed_s,
            cpu_s=cpu_s,
            loop_cpu_s=loop_cpu_s,
            first_relevant_s=self._first_relevant_s,
            lag_p50_s=statistics.median(self._lags_s),
            lag_p99_s=statistics.quantiles(self._lags_s, n=100, method="inclusive")[98],
            lag_max_s=max(self._lags_s),
        )

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _PROBE_EVERY_S
            await asyncio.sleep(_PROBE_EVERY_S)
            self._lags_s.append(loop.time() - due_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``cpu_s`` is what all processes of the crawler took, ``loop_cpu_s`` the one with the event loop."""

    num_pages: int
    num_chars: int
    elapsed_s: float
    cpu_s: float
    loop_cpu_s: float
    first_relevant_s: float | None
    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float

    def print(self) -> None:
        """For the program that started this one."""
        print(json.dumps(asdict(self)))
