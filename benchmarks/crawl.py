"""WebCrawler beside Scrapy and crawl4ai: ``python -m benchmarks.crawl``, after ``python -m benchmarks.crawlers.environments``.

All read the same site on loopback, served by a process of its own, with the same extractor in the same number of processes and
the same number of requests at once. They take turns, round after round. A crawl is timed from its first request to its last
text; the extraction processes are warm. ``pages/CPU s`` is what a core brings, whatever else the machine does meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.crawlers.common import EXTRACTORS, Task
from benchmarks.crawlers.environments import FOLDER, python_of
from tests.sites.library import ANSWER, NUM_PARAGRAPHS, QUESTION
from tests.sites.processes import watching
from tests.sites.server import Site, running

OURS = "WebCrawler"
LATENCY_S = 0.01  # of each page
_COLUMNS = {
    "pages/s": lambda run: run["num_pages"] / run["elapsed_s"],
    "pages/CPU s": lambda run: run["num_pages"] / run["cpu_s"],
    "loop CPU/page": lambda run: 1e3 * run["loop_cpu_s"] / run["num_pages"],
    "first relevant": lambda run: run["first_relevant_s"],
    "lag P50": lambda run: 1e3 * run["lag_p50_s"],
    "lag P99": lambda run: 1e3 * run["lag_p99_s"],
    "lag max": lambda run: 1e3 * run["lag_max_s"],
    "memory": lambda run: run["peak_bytes"] / 1e6,
}
_UNITS = ("", "", "ms", "s", "ms", "ms", "ms", "MB")
_COMPARED = ("pages/s", "pages/CPU s")


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that crawls."""

    name: str
    python: Path
    module: str


def contestants(folder: Path) -> list[Contestant]:
    """Ours, and those that have an environment in ``folder``."""
    return [
        Contestant(OURS, Path(sys.executable), "ours"),
        Contestant("Scrapy", python_of(folder, "scrapy"), "scrapy_trafilatura"),
        Contestant("crawl4ai, HTTP", python_of(folder, "crawl4ai"), "crawl4ai_http"),
    ]


def run(contestant: Contestant, task: Task, folder: Path) -> dict[str, Any]:
    """One crawl of the whole site."""
    quiet = {"CRAWL4AI_NO_CLOUD_NOTICE": "1", "CRAWL4_AI_BASE_DIRECTORY": str(folder)}
    root = Path(__file__).parents[1]
    command = [str(contestant.python), "-m", f"benchmarks.crawlers.{contestant.module}", json.dumps(asdict(task))]
    environment = {**os.environ, **quiet, "PYTHONPATH": str(root)}
    set_up = f"{contestant.name} failed. Set it up with: python -m benchmarks.crawlers.environments"
    if not contestant.python.exists():
        raise SystemExit(set_up)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=root, text=True)
    with process, watching(process.pid) as peak:
        printed, _ = process.communicate()
    if process.returncode or not printed:
        raise SystemExit(set_up)
    outcome: dict[str, Any] = json.loads(printed.splitlines()[-1])
    if outcome["num_pages"] != task.num_pages or outcome["first_relevant_s"] is None:
        raise SystemExit(f"{contestant.name} read {outcome['num_pages']} of {task.num_pages} pages")
    return {**outcome, "crawler": contestant.name, "extractor": task.extractor, "peak_bytes": peak.num_bytes}


@contextmanager
def served(site: Site, *, one_core: bool) -> Iterator[Site]:
    """The site; where there is ``one_core`` for each crawler, on the others, if there are any."""
    if not one_core:
        with running(site) as started:
            yield started
        return
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    os.sched_setaffinity(0, cores - first or cores)
    try:
        with running(site) as started:
            os.sched_setaffinity(0, first)
            yield started
    finally:
        os.sched_setaffinity(0, cores)


def measure(site: Site, num_rounds: int, extractor: str, folder: Path, *, one_core: bool = False) -> list[dict[str, Any]]:
    """All contestants in turn, another one first each time."""
    runs = []
    field = contestants(folder)
    with served(site, one_core=one_core) as site:
        library = site.library
        task = Task(library.entrance, library.hosts, site.num_pages, QUESTION, ANSWER, extractor)
        for number in range(num_rounds):
            turn = number % len(field)
            for contestant in field[turn:] + field[:turn]:
                runs.append({"round": number, "num_paragraphs": site.num_paragraphs, **run(contestant, task, folder)})
                print(f"{extractor}, round {number + 1}: {contestant.name}", file=sys.stderr)
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """Medians over the rounds, and how we compare with the best of the others."""
    names = list(dict.fromkeys(each["crawler"] for each in runs))
    medians = {
        name: {column: median(value(each) for each in runs if each["crawler"] == name) for column, value in _COLUMNS.items()}
        for name in sorted(names, key=lambda name: name != OURS)
    }
    lines = [f"{'':16}" + "".join(f"{column:>16}" for column in _COLUMNS)]
    for name, row in medians.items():
        cells = (
            f"{value:.1f} {unit}" if value >= 1 else f"{value:.2f} {unit}"
            for value, unit in zip(row.values(), _UNITS, strict=True)
        )
        lines.append(f"{name:16}" + "".join(f"{cell.strip():>16}" for cell in cells))
    for column in _COMPARED:
        best = max((name for name in medians if name != OURS), key=lambda name: medians[name][column])
        ratio = medians[OURS][column] / medians[best][column]
        lines.append(f"{column}: {ratio:.2f} times those of {best}, the best of the others")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--paragraphs", type=int, nargs="+", default=[NUM_PARAGRAPHS], help="of each page")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--extractors", nargs="+", choices=EXTRACTORS, default=list(EXTRACTORS))
    parser.add_argument("--one-core", action="store_true", help="hold each crawler to one core, and the site to the others")
    parser.add_argument("--environments", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    runs = []
    for extractor, num_paragraphs in product(given.extractors, given.paragraphs):
        site = Site(given.pages, num_paragraphs=num_paragraphs, latency_s=LATENCY_S)
        measured = measure(site, given.rounds, extractor, given.environments.absolute(), one_core=given.one_core)
        work = f"{given.pages} pages of {num_paragraphs} paragraphs, medians of {given.rounds} rounds, {os.cpu_count()} cores"
        print(f"\n{extractor}, {work}\n{table(measured)}")
        runs += measured
    if given.json:
        machine = {"machine": platform.platform(), "num_cores": os.cpu_count(), "one_core": given.one_core}
        given.json.write_text(json.dumps({**machine, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
