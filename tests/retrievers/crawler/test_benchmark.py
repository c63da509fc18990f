"""The comparison with other crawlers, as far as it can be run without them."""

from __future__ import annotations

import os

import pytest

from benchmarks import crawl as benchmark
from benchmarks.crawlers.common import Task
from tests.sites.library import ANSWER, QUESTION
from tests.sites.server import Site, running


def test_our_crawler_reads_the_whole_site_and_finds_the_answer_early(tmp_path):
    ours, *_ = benchmark.contestants(tmp_path)
    with running(Site(num_pages=80)) as site:
        task = Task(site.library.entrance, site.library.hosts, 80, QUESTION, ANSWER, "resiliparse")
        outcome = benchmark.run(ours, task, tmp_path)
    assert outcome["num_pages"] == 80
    assert 0 < outcome["first_relevant_s"] < outcome["elapsed_s"]
    assert outcome["lag_p50_s"] <= outcome["lag_p99_s"] <= outcome["lag_max_s"]
    assert outcome["cpu_s"] > outcome["loop_cpu_s"] > 0
    assert outcome["peak_bytes"] > 10_000_000


@pytest.mark.parametrize("one_core", [False, True])
def test_a_crawler_may_be_held_to_a_core_that_the_site_leaves_alone(one_core):
    cores = os.sched_getaffinity(0)
    with benchmark.served(Site(num_pages=1), one_core=one_core) as site:
        crawler, server = os.sched_getaffinity(0), os.sched_getaffinity(site.pid)
    assert (len(crawler), server) == ((1, cores - crawler or cores) if one_core else (len(cores), cores))
    assert os.sched_getaffinity(0) == cores


def test_a_crawler_that_is_not_there_is_named(tmp_path):
    _, other, _ = benchmark.contestants(tmp_path)
    with pytest.raises(SystemExit, match=r"Scrapy .*benchmarks\.crawlers\.environments"):
        benchmark.run(other, Task("http://127.0.0.1:1/", (), 1, QUESTION, ANSWER, "resiliparse"), tmp_path)


def test_the_table_compares_medians_with_the_best_of_the_others():
    def run(name: str, elapsed_s: float) -> dict:
        times = dict.fromkeys(("loop_cpu_s", "first_relevant_s", "lag_p50_s", "lag_p99_s", "lag_max_s"), 0.5)
        return {"crawler": name, "num_pages": 100, "elapsed_s": elapsed_s, "cpu_s": elapsed_s, "peak_bytes": 1e6, **times}

    runs = [run(benchmark.OURS, elapsed_s) for elapsed_s in (1.0, 2.0, 50.0)]
    runs += [run(name, elapsed_s) for name, elapsed_s in (("slow", 9.0), ("quick", 5.0))]
    assert "pages/s: 2.50 times those of quick, the best of the others" in benchmark.table(runs)
