"""One round: a trace, replayed in real time against one engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from stream2llm_rag.bench.observer import Observer
from stream2llm_rag.bench.pace import Pace, StallWatch
from stream2llm_rag.bench.script import Script
from stream2llm_rag.bench.sighting import Sighting
from stream2llm_rag.bench.steps import Step, StepLog
from stream2llm_rag.bench.targets import Target
from stream2llm_rag.bench.ways import Way
from stream2llm_rag.errors import EngineError
from stream2llm_rag.simulation.records import RequestRecord

_FORGET_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one way made of one trace.

    ``stalled``: the engine stood still until the stall limit, and the round ended there. ``cut_off``: the round ended because
    its time was up. Either way what had not finished counts as infinite. ``lateness_s`` has by how much the driver missed each
    moment of the trace. ``answers`` are token ids by query id, as far as they came.
    """

    way: Way
    records: tuple[RequestRecord, ...]
    answers: dict[str, tuple[int, ...]]
    steps: tuple[Step, ...]
    lateness_s: tuple[float, ...]
    duration_s: float
    stalled: bool = False
    cut_off: bool = False


async def replay(
    target: Target, scripts: Sequence[Script], *, stall_limit_s: float, time_limit_s: float | None = None
) -> Round:
    """Replay ``scripts`` against ``target``, open loop: each chunk is sent at its time, whatever became of those before.

    The engine starts with an empty prefix cache. Raises :class:`EngineError` where it still holds KV of an earlier round.
    """
    await forget_prefixes(target)
    pace, watch, log = Pace(), StallWatch(stall_limit_s), StepLog()
    observers = [Observer(Sighting(script.query, pace.started_s), pace, watch, log) for script in scripts]
    for script in scripts:
        watch.expect(script.query.query_id, script.query.final_s)
    stalled = False

    async def end_when_stalled(scope: anyio.CancelScope) -> None:
        nonlocal stalled
        await watch.until_stalled(pace.now)
        stalled = True
        scope.cancel()

    with _first_of_many(), anyio.move_on_after(time_limit_s) as limit:
        async with anyio.create_task_group() as group:
            group.start_soon(end_when_stalled, group.cancel_scope)
            async with anyio.create_task_group() as asking:
                for script, observer in zip(scripts, observers, strict=True):
                    asking.start_soon(_ask, target, script, pace, observer)
            group.cancel_scope.cancel()
    return Round(
        way=target.way,
        records=tuple(observer.sighting.record() for observer in observers),
        answers={observer.sighting.query.query_id: tuple(observer.sighting.token_ids) for observer in observers},
        steps=tuple(log.steps()),
        lateness_s=tuple(pace.lateness_s),
        duration_s=pace.now(),
        stalled=stalled,
        cut_off=limit.cancelled_caught,
    )


async def _ask(target: Target, script: Script, pace: Pace, observer: Observer) -> None:
    try:
        await target.ask(script, pace, observer)
    finally:
        observer.end()


@contextmanager
def _first_of_many() -> Iterator[None]:
    """Of the errors of a group raise the first as it is: when an engine dies, all of its requests say so."""
    try:
        yield
    except BaseExceptionGroup as failures:
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
    else:
        return
    raise failure


async def forget_prefixes(target: Target) -> None:
    """Empty the prefix cache. What was aborted just now may hold its KV for a moment.

    Raises :class:`EngineError` where somebody still does after 30 seconds.
    """
    with anyio.move_on_after(_FORGET_TIMEOUT_S):
        while not await target.reset_prefix_cache():  # noqa: ASYNC110 - nobody is told when the core lets go
            await anyio.sleep(0.02)
        return
    raise EngineError(f"{target.way.name}: requests of an earlier round hold KV still. Open a new engine.")
