"""Phase 2 of a step: vLLM's own scheduler, shown just the requests that the plan lets run.

The only modules that touch vLLM's scheduler internals. A streaming request is an ordinary ``Request`` that grows: repeated
engine-core requests of its id carry operations (:mod:`stream2llm_rag.engine.protocol`). It is computed up to its last token but
one, so that it never samples, until its finish lifts that cap. One with nothing to compute is *idle*: it keeps its blocks, sits
in none of vLLM's queues, and can be evicted. Then it has *lapsed* until its next operation: it stays idle, comes back when
there is room for it, and nobody is evicted for that, unless the policy weighs blocks against each other: else two such streams
would take turns for ever.

The class is made of parts with one job each, over the same state: ``state`` <- ``queues`` <- ``swapping`` <- ``losses`` <-
``operations`` | ``planning`` <- ``steps`` | ``reports``.
"""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from stream2llm_rag.engine.scheduler.operations import Operations
from stream2llm_rag.engine.scheduler.reports import Reports
from stream2llm_rag.engine.scheduler.steps import Steps


class _Streaming(Operations, Steps, Reports):
    """All parts together."""


class StreamingScheduler(_Streaming):
    """For synchronous scheduling."""


class AsyncStreamingScheduler(_Streaming, AsyncScheduler):
    """For asynchronous scheduling, where steps are planned before the last one's output is there."""
