from __future__ import annotations

import gc
import subprocess
import sys

import psutil
import pytest

from stream2llm_rag.errors import InvalidInputError, MissingExtraError
from stream2llm_rag.simulation.grid import FRONTENDS, Generated, Machine, Recorded, Setting, run, run_all, trim_s
from stream2llm_rag.simulation.step_time import load_hardware
from stream2llm_rag.simulation.trace import Chunk, Query

SMALL = Generated("crawler", qps=2.0, delay=2.0, num_requests=30)
PLAIN = Setting(SMALL, Machine(), "ns")


def test_a_load_has_the_queries_of_its_seed():
    assert SMALL.trace(1) == SMALL.trace(1) != SMALL.trace(2)
    assert len(SMALL.trace(1)) == 30


def test_a_recorded_trace_is_the_same_for_every_seed():
    queries = (Query("q", 0.0, (Chunk(1.0, 10),)),)
    assert Recorded("mine", queries).trace(0) is Recorded("mine", queries).trace(1) is queries


def test_labels_say_what_is_not_as_usual():
    machine = Machine(load_hardware("h200"), pool=0.35, prefix_caching=True, depth=2)
    assert PLAIN.series == "crawler, delay x2, pool 1 of h200x2"
    assert Setting(Generated("anns", 1.0), machine, "ns").series == "anns, pool 0.35 of h200, prefix caching, asynchronous"


def test_a_pool_is_a_share_of_the_hardwares_blocks():
    assert Machine().shape().num_blocks == 98_000
    shape = Machine(load_hardware("h200"), pool=0.5, token_budget=512, prefix_caching=True, depth=2).shape()
    assert (shape.num_blocks, shape.token_budget, shape.max_num_seqs) == (23_450, 512, 512)
    assert (shape.prefix_caching, shape.depth) == (True, 2)


def test_ramp_up_and_drain_are_a_mean_retrieval_and_at_most_a_fifth_of_the_arrivals():
    def asked(at_s, length_s):
        return Query(f"q{at_s}", at_s, (Chunk(length_s, 10),))

    assert trim_s([asked(0.0, 4.0), asked(100.0, 8.0)]) == 6.0
    assert trim_s([asked(20.0, 40.0), asked(0.0, 40.0)]) == 4.0


def test_a_run_measures_what_it_simulated():
    found = run(PLAIN)
    assert (found.frontend, found.seed, found.qps) == ("ns", 0, 2.0)
    assert found.summary.num_requests == 30
    assert found.summary.num_unfinished == 0
    assert found.summary.num_computed == sum(query.num_prompt_tokens for query in SMALL.trace(0))
    assert found.ttft_s[-1] >= found.summary.ttft_s.p95


def test_every_front_end_answers_all_and_streaming_is_sooner():
    found = {frontend: run(Setting(SMALL, Machine(), frontend)) for frontend in FRONTENDS}
    assert all(one.summary.num_unfinished == 0 for one in found.values())
    assert all(one.summary.ttft_s.p50 < found["ns"].summary.ttft_s.p50 for name, one in found.items() if name != "ns")


def test_several_processes_give_what_one_gives():
    settings = [Setting(Generated("anns", 1.0, num_requests=10), Machine(token_budget=8192), "fcfs", seed) for seed in range(3)]
    alone, together = dict(run_all(settings)), dict(run_all(settings, num_processes=2))
    assert alone == together
    assert sorted(together) == [0, 1, 2]


_ABANDONED = """
from stream2llm_rag.simulation.grid import Generated, Machine, Setting, run_all

if __name__ == "__main__":
    short = [Setting(Generated("crawler", 2.0, num_requests=10), Machine(), "ns", seed) for seed in range(2)]
    long = [Setting(Generated("crawler", 4.0, 10.0, num_requests=20_000), Machine(), "density", seed) for seed in range(4)]
    runs = run_all([*short, *long], num_processes=2)
    print(next(runs)[1].frontend, next(runs)[1].frontend, flush=True)
    next(runs)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "abandoned.py"
    script.write_text(_ABANDONED, "utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ns ns\n"  # so each has begun
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len([worker for worker in workers if "spawn_main" in " ".join(worker.cmdline())]) == 2
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_an_error_names_the_setting():
    with pytest.raises(InvalidInputError, match="no front end 'fastest'") as caught:
        list(run_all([Setting(SMALL, Machine(), "fastest", seed=4)]))
    assert gc.isenabled()
    assert caught.value.__notes__ == ["In crawler, delay x2, pool 1 of h200x2, 2.0 QPS, fastest, seed 4"]


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stream2llm_rag.simulation.frontends", None)
    with pytest.raises(MissingExtraError, match=r"stream2llm-rag\[vllm\]"):
        run(PLAIN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generated("spider", 1.0), "there is no workload 'spider'. Write one of crawler, anns"),
        (lambda: Machine(pool=0.0), "pool is 0.0"),
        (lambda: run(Setting(Generated("crawler", -1.0), Machine(), "ns")), "qps is -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()
