"""The scheduler that notes what vLLM's does, in the simulation: it must decide as vLLM's, and count what that did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from stream2llm_rag.bench.recording_scheduler import AsyncRecordingScheduler, RecordingScheduler
from stream2llm_rag.bench.scaling import Scale, scale_trace
from stream2llm_rag.engine.feedback import StepKind
from stream2llm_rag.simulation.building import CoreShape
from stream2llm_rag.simulation.frontends import Frontend, NativeStreaming, NonStreaming
from stream2llm_rag.simulation.simulator import simulate
from stream2llm_rag.simulation.step_time import load_hardware
from stream2llm_rag.simulation.workloads import anns

made: list[Any] = []


class Kept(RecordingScheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        made.append(self)


class AsyncKept(AsyncRecordingScheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        made.append(self)


@dataclass(frozen=True, slots=True)
class RecordedNonStreaming(NonStreaming):
    name: ClassVar[str] = "ns"

    def scheduler_class(self, asynchronous: bool) -> Any:
        return AsyncKept if asynchronous else Kept


@dataclass(frozen=True, slots=True)
class RecordedNative(NativeStreaming):
    name: ClassVar[str] = "native"

    def scheduler_class(self, asynchronous: bool) -> Any:
        return AsyncKept if asynchronous else Kept


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("stock", "recorded"), [(NonStreaming(), RecordedNonStreaming()), (NativeStreaming(), RecordedNative())]
)
@pytest.mark.parametrize("num_output_tokens", [1, 150])
def test_it_decides_as_vllm_does_and_counts_what_that_did(
    stock: Frontend, recorded: Frontend, depth: int, num_output_tokens: int
) -> None:
    trace = scale_trace(anns(25, 30.0, 0.1, num_output_tokens=num_output_tokens), Scale(tokens=1 / 64, time=1.0))
    step_time = load_hardware("h200").step_time
    longest = max(max(query.prompt_lengths) for query in trace) + num_output_tokens
    shape = CoreShape(
        num_blocks=longest // 16 + 20,
        max_model_len=longest + 1,
        token_budget=256,
        prefix_caching=True,
        depth=depth,
        max_num_seqs=64,
    )
    made.clear()
    found = simulate(trace, recorded, step_time, shape)
    assert found == simulate(trace, stock, step_time, shape)
    [scheduler] = made
    counts: Counter[str] = Counter()
    for _, kind, started_s, ended_s, num_tokens in scheduler._feedback.drain()["records"]:
        assert ended_s >= started_s
        counts[kind] += num_tokens
    assert counts[StepKind.RESUMED] == found.summary.num_cached
    assert scheduler._feedback.counters.num_preemptions == found.engine.num_preemptions
    if stock.name == "ns" and num_output_tokens > 1:
        assert found.engine.num_preemptions > 0, "else nothing was shown"
    if num_output_tokens == 1:
        assert counts[StepKind.COMPUTED] == found.summary.num_computed
