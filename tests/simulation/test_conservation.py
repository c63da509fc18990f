"""Books are kept in every run; here in many, with each front end, in a pool far too small, and with schedulers that err."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stream2llm_rag.engine.scheduler import StreamingScheduler
from stream2llm_rag.errors import ConservationError
from stream2llm_rag.simulation.frontends import make_frontend
from stream2llm_rag.simulation.simulator import simulate

from .running import FIXED, OURS, SMALL, linear, random_trace

NUM_TRACES = 12


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", [*FIXED, *OURS])
def test_nothing_is_lost_leaked_or_made_up(name: str, depth: int, prefix_caching: bool) -> None:
    if name == "vllm-s" and prefix_caching:
        pytest.skip("vLLM-S has no prefix cache")
    shape = replace(SMALL, depth=depth, prefix_caching=prefix_caching)
    for seed in range(NUM_TRACES):
        trace = random_trace(seed)
        result = simulate(trace, make_frontend(name), linear, shape)
        assert [record.query_id for record in result.records] == [query.query_id for query in trace]
        assert result.engine.num_scheduled_tokens == result.summary.num_computed
        if result.summary.deadlocked:
            assert name == "native"
            continue
        for query, record in zip(trace, result.records, strict=True):
            assert record.num_output_tokens == query.num_output_tokens
            assert query.final_s < record.first_token_s <= record.finished_s < float("inf")
            gained = record.num_computed + record.num_cached
            lost = record.num_invalidated + record.num_evicted
            assert gained == query.num_prompt_tokens + query.num_output_tokens - 1 + lost


def test_the_traces_reach_evictions_invalidations_and_hits() -> None:
    shape = replace(SMALL, prefix_caching=True)
    runs = [simulate(random_trace(seed), make_frontend("fcfs"), linear, shape).summary for seed in range(NUM_TRACES)]
    assert sum(run.num_evictions for run in runs) > 50
    assert sum(run.num_invalidated for run in runs) > 50
    assert sum(run.num_cached for run in runs) > 50


def keeps_kv_of_what_was_replaced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamingScheduler, "_truncate", lambda self, request, keep: None)


def samples_before_the_final_context(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamingScheduler, "_reserve_prefill_lookahead", lambda self, request, start, num_tokens: num_tokens)


def does_not_report_an_eviction(patch: pytest.MonkeyPatch) -> None:
    original = StreamingScheduler._note_loss
    patch.setattr(
        StreamingScheduler,
        "_note_loss",
        lambda self, stream, before: original(self, stream, stream.request.num_computed_tokens),
    )


def leaks_the_blocks_of_the_finished(patch: pytest.MonkeyPatch) -> None:
    after(patch, "_free_request", lambda self, request: self.kv_cache_manager.block_pool.get_new_blocks(1))


def computes_tokens_twice(patch: pytest.MonkeyPatch) -> None:
    def step_back(self: Any, output: Any) -> None:
        for request in (self.requests.get(request_id) for request_id in output.num_scheduled_tokens):
            if request is not None and request.is_prefill_chunk:
                request.num_computed_tokens -= 1

    after(patch, "update_from_output", lambda self, output, result: step_back(self, output))


def forgets_a_finish(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamingScheduler, "_complete", lambda self, stream, final: None)


def after(patch: pytest.MonkeyPatch, name: str, then: Callable[..., Any]) -> None:
    original = getattr(StreamingScheduler, name)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        then(self, *args)
        return result

    patch.setattr(StreamingScheduler, name, patched)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (keeps_kv_of_what_was_replaced, "keeps KV of"),
        (samples_before_the_final_context, "samples before its final context"),
        (does_not_report_an_eviction, "without a report"),
        (leaks_the_blocks_of_the_finished, "blocks are held"),
        (computes_tokens_twice, "without a report"),
        (forgets_a_finish, "are not answered"),
    ],
)
def test_a_scheduler_that_is_broken_on_purpose_is_caught(
    break_it: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    with pytest.raises(ConservationError, match=message):
        simulate(random_trace(1, num_queries=60), make_frontend("fcfs"), linear, SMALL)
