"""What an engine measures of itself and of each request, and how Prometheus sees it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from pathlib import Path

import anyio
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stream2llm_rag import Append, ContextDelta, Document, StreamingRAG
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.feedback import CoreFeedback, EngineCounters, FeedbackHub, StepKind, StepRecord
from stream2llm_rag.engine.metrics import COUNTERS, GAUGES, exported
from stream2llm_rag.engine.session import SessionStats

from .cases import GREEDY, collect
from .conftest import computed, quiet
from .test_edges import prompt

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class TestARequest:
    async def test_idles_from_when_its_context_is_computed_until_more_comes(self, tight_engine: Stream2LLMEngine) -> None:
        await tight_engine.reset_prefix_cache()
        opened = time.monotonic()
        async with await tight_engine.open(prompt(200, 1)) as session:
            await computed(session, 199)
            began = time.monotonic()
            await collect(tight_engine.generate(prompt(900, 2), {**GREEDY, "max_tokens": 50}))  # time passes, by real work
            passed = time.monotonic() - began
            await collect(await session.finish(prompt(10, 3), GREEDY))
            assert passed <= session.stats.idle_s <= time.monotonic() - opened
            assert session.stats.idle_s + session.stats.waiting_s <= time.monotonic() - opened

    async def test_waits_while_others_take_all_steps(self, tight_engine: Stream2LLMEngine) -> None:
        await tight_engine.reset_prefix_cache()
        opened = time.monotonic()
        async with await tight_engine.open(prompt(1200, 4)) as first, await tight_engine.open(prompt(1200, 5)) as second:
            # Either fills the pool: one is answered first, and the other has work all that time.
            answers = [await session.finish(prompt(20, 6), {**GREEDY, "max_tokens": 40}) for session in (first, second)]
            async with anyio.create_task_group() as tasks:
                for answer in answers:
                    tasks.start_soon(collect, answer)
            elapsed = time.monotonic() - opened
            waits = sorted(session.stats.waiting_s for session in (first, second))
        assert waits[0] < waits[1] <= elapsed
        assert waits[1] > elapsed / 4

    async def test_tells_its_times_in_the_result_of_an_answer(self, tight_engine: Stream2LLMEngine) -> None:
        class Gated:
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                yield Append((Document("Cancel it by its cancel method.", "https://docs.example/1"),))
                await collect(tight_engine.generate(prompt(700, 7), GREEDY))

        result = await StreamingRAG(tight_engine, Gated(), sampling=GREEDY).answer("How?")
        assert 0 < result.idle_s <= result.retrieval_s
        assert 0 <= result.waiting_s <= result.arrival_to_first_token_s
        assert result.timeline.measures["idle_s"] == result.idle_s


def test_spans_of_a_request_add_up() -> None:
    stats = SessionStats()
    for kind, started_s, ended_s in [("waited", 1.0, 1.5), ("idle", 2.0, 4.0), ("waited", 5.0, 5.25), ("idle", 6.0, 6.5)]:
        stats.add(StepRecord("r", StepKind(kind), started_s, ended_s, 0))
    assert (stats.waiting_s, stats.idle_s) == (0.75, 2.5)


class TestAnEngine:
    async def test_counts_its_requests_by_tier_and_by_state(self, tight_engine: Stream2LLMEngine) -> None:
        await tight_engine.reset_prefix_cache()
        async with await tight_engine.open(prompt(100, 8)) as first, await tight_engine.open(prompt(300, 9)) as second:
            await computed(first, 99)
            await computed(second, 299)
            await quiet(tight_engine)
            core = tight_engine.stats().cores[0]
        assert (core.num_partial, core.num_complete, core.num_idle, core.num_running, core.num_waiting) == (2, 0, 2, 0, 0)
        assert core.num_idle_blocks == core.num_used_blocks == 4 + 10  # of 32 tokens

    async def test_counts_evictions_and_what_planning_costs(self, tight_engine: Stream2LLMEngine) -> None:
        before = tight_engine.stats().cores[0]
        async with await tight_engine.open(prompt(1200, 10)) as session:
            await computed(session, 1199)
            await collect(tight_engine.generate(prompt(1200, 11), GREEDY))
            await quiet(tight_engine)
            assert session.stats.num_evictions > 0
        after = tight_engine.stats().cores[0]
        assert after.num_evictions > before.num_evictions
        assert after.num_steps > before.num_steps
        assert after.planning_s > before.planning_s

    async def test_is_seen_by_prometheus_beside_others(self, tight_engine: Stream2LLMEngine, engine: Stream2LLMEngine) -> None:
        async with await tight_engine.open(prompt(100, 12)) as session:
            await computed(session, 99)
            await quiet(tight_engine)
            await quiet(engine)
            both = [other.stats().cores[0] for other in (tight_engine, engine)]
            labels = {"model_name": tight_engine._running().model_config.served_model_name, "engine": "0"}
            assert REGISTRY.get_sample_value("stream2llm:num_requests_idle", labels) == 1
            assert REGISTRY.get_sample_value("stream2llm:ops_total", labels) == sum(core.num_ops for core in both)


@pytest.fixture
def hub() -> FeedbackHub:
    hub = FeedbackHub()
    receive(hub, num_idle=3, num_tail_evictions=5, planning_s=0.5)
    return hub


def receive(hub: FeedbackHub, engine_index: int = 0, **counters: float) -> None:
    hub.receive(CoreFeedback(EngineCounters(**counters)).drain(), engine_index)  # type: ignore[arg-type]


def scraped(model_name: str) -> Mapping[tuple[str, str, str | None], float]:
    """What Prometheus gets: sample values by name, engine and kind, of one model."""
    families = text_string_to_metric_families(generate_latest(REGISTRY).decode())
    samples = [sample for family in families for sample in family.samples if sample.labels.get("model_name") == model_name]
    return {(s.name, s.labels["engine"], s.labels.get("kind")): s.value for s in samples if s.name.startswith("stream2llm:")}


class TestPrometheus:
    def test_sees_gauges_counters_and_their_kinds(self, hub: FeedbackHub) -> None:
        with exported("one", hub):
            found = scraped("one")
        assert found["stream2llm:num_requests_idle", "0", None] == 3
        assert found["stream2llm:evictions_total", "0", "tail"] == 5
        assert found["stream2llm:evictions_total", "0", "whole"] == 0
        assert found["stream2llm:planning_seconds_total", "0", None] == 0.5

    def test_sees_each_core_of_an_engine(self, hub: FeedbackHub) -> None:
        receive(hub, 1, num_idle=4)
        with exported("one", hub):
            found = scraped("one")
        assert [found["stream2llm:num_requests_idle", index, None] for index in "01"] == [3, 4]

    def test_sees_engines_one_after_the_other_and_at_once(self, hub: FeedbackHub) -> None:
        for _ in range(2):
            with exported("one", hub), exported("two", FeedbackHub()), exported("one", hub):
                assert scraped("one")["stream2llm:num_requests_idle", "0", None] == 6  # a registry has each series once
            assert not scraped("one")

    def test_sees_nothing_of_ours_once_all_are_closed(self, hub: FeedbackHub) -> None:
        others_open = "stream2llm:" in generate_latest(REGISTRY).decode()
        with exported("one", hub):
            assert "stream2llm:" in generate_latest(REGISTRY).decode()
        assert ("stream2llm:" in generate_latest(REGISTRY).decode()) == others_open

    def test_may_run_in_several_processes(self, hub: FeedbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from prometheus_client.multiprocess import MultiProcessCollector

        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        gathered = CollectorRegistry()
        MultiProcessCollector(gathered)
        with exported("one", hub):
            assert scraped("one")["stream2llm:num_requests_idle", "0", None] == 3
            assert generate_latest(gathered) == b""
        assert list(tmp_path.iterdir()) == []


def test_every_counter_is_exported_and_every_series_documented() -> None:
    assert {series.counter for series in (*GAUGES, *COUNTERS)} == {field.name for field in fields(EngineCounters)}
    text = DOCS.read_text()
    names = [series.family for series in GAUGES] + [f"{series.family}_total" for series in COUNTERS]
    assert [name for name in names if f"`{name}" not in text] == []
    figures = [field.name for field in fields(SessionStats) if not field.name.startswith("_")]
    assert [name for name in figures if f"`{name}`" not in text] == []
