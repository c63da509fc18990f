"""A round of the benchmark on the real engine, under pressure: the answers are stock vLLM's, and the books balance."""

from __future__ import annotations

from stream2llm_rag.bench.replay import replay
from stream2llm_rag.bench.scaling import Scale, scale_trace
from stream2llm_rag.bench.script import write_scripts
from stream2llm_rag.bench.targets import Streaming
from stream2llm_rag.bench.ways import DEFAULT
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.simulation.workloads import anns, crawler

from .cases import GREEDY, Reference


async def test_streams_of_a_round_answer_as_stock_vllm_does(tight_engine: Stream2LLMEngine, reference: Reference) -> None:
    trace = tuple(query for workload in (crawler, anns) for query in workload(10, 20.0, num_output_tokens=4))
    trace = tuple(query for query in scale_trace(trace, Scale(tokens=1 / 32, time=0.02)) if max(query.prompt_lengths) < 1200)
    scripts = write_scripts(trace, range(5, 2000))
    done = await replay(Streaming(DEFAULT, tight_engine), scripts, stall_limit_s=60.0)
    assert not done.stalled
    for script, record in zip(scripts, done.records, strict=True):
        expected = await reference.answer(script.final_prompt, {**GREEDY, "max_tokens": 4})
        assert done.answers[script.query.query_id] == tuple(expected)
        gained = record.num_computed + record.num_cached
        assert gained >= record.num_prompt_tokens + record.num_invalidated + record.num_evicted
        assert 0 < record.ttft_s < float("inf")
    assert sum(len(step.items) for step in done.steps) > len(scripts)
    assert all(step.seconds > 0 for step in done.steps)
