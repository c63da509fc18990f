"""A site of ordinary pages among traps, crawled whole by a process of its own (``python -m tests.sites``)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from stream2llm_rag.documents import Append, Document, RetrievalEvent
from tests.sites.__main__ import judge
from tests.sites.server import Site

_NUM_PAGES = 60
_MAX_PEAK_BYTES = 400_000_000  # the crawler and two extraction processes: one bomb or endless body kept whole would show


def crawled(folder, num_pages: int, *options: str) -> dict:
    path = folder / "report.json"
    command = [sys.executable, "-m", "tests.sites", "--quick", "--pages", str(num_pages), "--copies", "1", "--json", str(path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert path.exists(), done.stderr
    assert "hishel" not in done.stderr  # which logs what it cannot keep
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    return crawled(tmp_path_factory.mktemp("site"), _NUM_PAGES)


def test_every_page_comes_once_and_every_failure_is_named(report):
    assert report["problems"] == []
    assert report["outcomes"]["pages"] == {"it comes": _NUM_PAGES}
    assert report["num_skipped"] >= 47
    assert report["num_from_cache"] == 0


def test_so_it_is_with_a_cache_when_it_is_empty_and_when_it_is_full(tmp_path):
    report = crawled(tmp_path, 9, "--cache", str(tmp_path / "cache"))
    assert report["problems"] == []
    assert report["num_skipped"] >= 47
    assert report["num_from_cache"] == 9 + 1  # and one trap that confirms what is stored


def test_no_trap_makes_the_crawler_hold_much(report):
    assert 50_000_000 < report["peak_bytes"] < _MAX_PEAK_BYTES


class TestJudge:
    """What the report rests on."""

    site = Site(num_pages=3, num_copies=1, port=1)

    def deltas(self) -> list[Append]:
        documents = [Append((Document("text", url),)) for url in self.site.library.urls()]
        return documents + [
            self.said(url, trap.outcome.split("|")[0].replace(".", "?")) for url, trap in self.site.traps().items()
        ]

    def said(self, url: str, detail: str) -> Append:
        return Append((), events=(RetrievalEvent("skip", url, 0.0, 1.0, detail=detail),))

    def test_a_page_that_is_lost_is_a_problem(self):
        url = next(iter(self.site.library.urls()))
        assert f"{url}: nothing was said of it" in judge(self.site, self.deltas()[1:]).problems

    def test_a_page_that_comes_twice_is_a_problem(self):
        deltas = self.deltas()
        assert len(judge(self.site, [*deltas, deltas[0]]).problems) == len(judge(self.site, deltas).problems) + 1

    def test_a_trap_that_ends_otherwise_than_it_should_is_a_problem(self):
        url = next(url for url, trap in self.site.traps().items() if trap.name == "gzip-bomb")
        problems = judge(self.site, [self.said(url, "it fell asleep")]).problems
        assert f"{url}: ['it fell asleep'], but it should be 'it is larger than'" in problems
        assert not any(url in problem for problem in judge(self.site, [self.said(url, "it is larger than 9 bytes")]).problems)
