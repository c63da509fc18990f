from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import numpy as np
import pytest

from stream2llm_rag.engine.feedback import CoreFeedback, FeedbackHub, StepKind, StepRecord
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.protocol import Op, OpKind
from stream2llm_rag.engine.session import OutputDelta, Session
from stream2llm_rag.errors import InvalidInputError, LifecycleError
from stream2llm_rag.main_guard import missing_main_guard


class SlowWire:
    """Waits at each call until it is let go; notes what was dropped."""

    max_model_len, vocab_size = 1000, 1000

    def __init__(self) -> None:
        self.lifeline = Lifeline()
        self.gate = anyio.Event()
        self.entered = anyio.Event()
        self.dropped: list[bool] = []
        self.ops: list[Op] = []
        self.refusal: Exception | None = None

    async def send(self, session: Session, op: Op, *args: Any) -> None:
        self.entered.set()
        if self.refusal is not None:
            raise self.refusal
        await self.gate.wait()
        self.ops.append(op)

    async def submit(self, *args: Any) -> AsyncIterator[OutputDelta]:
        self.entered.set()
        await self.gate.wait()
        return self._nothing()

    async def drop(self, session: Session, submitted: bool) -> None:
        await anyio.lowlevel.checkpoint()
        self.dropped.append(submitted)

    async def _nothing(self) -> AsyncIterator[OutputDelta]:
        return
        yield


@pytest.fixture
def wire() -> SlowWire:
    return SlowWire()


@pytest.fixture
def closed() -> set[Session]:
    return set()


@pytest.fixture
def session(wire: SlowWire, closed: set[Session]) -> Session:
    return Session(wire, on_close=closed.add)


async def test_an_abort_beside_a_finish_drops_what_was_submitted(
    wire: SlowWire, session: Session, closed: set[Session]
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.finish, [5])
        await wire.entered.wait()
        tasks.start_soon(session.abort)
        await anyio.wait_all_tasks_blocked()
        assert not wire.dropped  # it waits for its turn
        wire.gate.set()
    assert wire.dropped == [True]
    assert closed == {session}
    with pytest.raises(LifecycleError, match="aborted"):
        await session.append([6])


async def test_a_finish_that_is_cancelled_midway_is_dropped_as_submitted(wire: SlowWire, session: Session) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.finish, [5])
        await wire.entered.wait()
        tasks.cancel_scope.cancel()
    wire.gate.set()
    with pytest.raises(LifecycleError, match="finished"):  # vLLM would never answer a second finish of the request
        await session.finish([5])
    await session.abort()
    assert wire.dropped == [True]


async def test_the_next_operation_opens_the_stream_where_the_first_was_refused(wire: SlowWire, session: Session) -> None:
    wire.refusal = InvalidInputError("mine")
    with pytest.raises(InvalidInputError, match="mine"):
        await session.append([5])
    wire.refusal = None
    wire.gate.set()
    await session.append([6])
    await session.update([7])
    assert [(op.kind, op.opens) for op in wire.ops] == [(OpKind.APPEND, True), (OpKind.UPDATE, False)]
    assert session.num_tokens == 1


@pytest.mark.parametrize("num_remaining", [2.0, -1, "2", True, 2**31])
async def test_a_hint_that_is_no_count_is_refused(wire: SlowWire, session: Session, num_remaining: Any) -> None:
    wire.gate.set()
    for call in (session.append, session.update):
        with pytest.raises(InvalidInputError, match="num_remaining is"):
            await call([5], num_remaining=num_remaining)
    assert wire.ops == []


async def test_a_hint_may_be_any_kind_of_integer(wire: SlowWire, session: Session) -> None:
    wire.gate.set()
    await session.append([5], num_remaining=np.int64(3))
    await session.append([5], num_remaining=0)
    assert [op.num_remaining for op in wire.ops] == [3, 0]
    assert type(wire.ops[0].num_remaining) is int


def test_the_measures_go_on_though_whoever_watches_fails(wire: SlowWire) -> None:
    heard: list[StepRecord] = []

    def fail(record: StepRecord) -> None:
        heard.append(record)
        raise ValueError("mine")

    session = Session(wire, on_close=lambda session: None, on_record=fail)
    for _ in range(2):
        session.take_record(StepRecord(session.request_id, StepKind.COMPUTED, 1.0, 2.0, 5))
    assert session.stats.computed_tokens == 10
    assert len(heard) == 1


async def test_an_abort_that_is_cancelled_drops_all_the_same(wire: SlowWire, session: Session, closed: set[Session]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await session.abort()
    assert wire.dropped == [False]
    assert closed == {session}


@pytest.mark.parametrize("num_steps", range(1, 5))
async def test_an_abort_whose_task_is_cancelled_drops_all_the_same(
    wire: SlowWire, session: Session, closed: set[Session], num_steps: int
) -> None:
    """As ``asyncio.timeout`` and ``wait_for`` do it, which no scope of anyio's holds off; wherever in the abort it comes."""
    task = asyncio.create_task(session.abort())
    for _ in range(num_steps):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert wire.dropped == [False]
    assert closed == {session}


def test_a_listener_that_raises_is_forgotten_and_others_go_on() -> None:
    hub, heard = FeedbackHub(), list[StepRecord]()

    def fail(record: StepRecord) -> None:
        raise ValueError("mine")

    hub.listen("bad", fail)
    hub.listen("good", heard.append)
    core = CoreFeedback()
    for _ in range(2):
        for request_id in ("bad", "good"):
            core.record(request_id, StepKind.COMPUTED, 5, 1.0, 2.0)
    hub.receive(core.drain())
    assert len(heard) == 2


class TestTheMainGuard:
    @pytest.fixture
    def main(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
        module = type(sys)("__main__")
        module.__file__ = str(tmp_path / "script.py")
        module.__spec__ = None
        monkeypatch.setitem(sys.modules, "__main__", module)
        return module

    def run_at_top_level(self, main: Any, source: str) -> str | None:
        with open(main.__file__, "w") as file:
            file.write(source)
        scope = {"__name__": "__main__", "missing_main_guard": missing_main_guard}
        exec(compile("found = missing_main_guard()", main.__file__, "exec"), scope)
        found = scope["found"]
        assert found is None or isinstance(found, str)
        return found

    def test_is_missed_in_a_script_that_runs_its_top_level(self, main: Any) -> None:
        assert self.run_at_top_level(main, "run()") == main.__file__

    def test_is_found_where_it_stands(self, main: Any) -> None:
        assert self.run_at_top_level(main, "if __name__ == '__main__':\n    run()") is None

    def test_is_not_needed_by_a_package_run_as_a_module(self, main: Any) -> None:
        main.__spec__ = type("Spec", (), {"name": "package.__main__"})()
        assert self.run_at_top_level(main, "run()") is None

    def test_is_not_asked_for_where_the_top_level_is_not_running(self, main: Any) -> None:
        with open(main.__file__, "w") as file:
            file.write("run()")
        found: list[str | None] = []
        thread = threading.Thread(target=lambda: found.append(missing_main_guard()))  # with a stack of its own
        thread.start()
        thread.join()
        assert found == [None]
