"""One connection over an engine that is not real: the order of messages, what is refused, and frames made at random."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.feedback import StepKind
from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.serve.codes import REFUSALS
from stream2llm_rag.serve.connection import Connection, GoneError
from stream2llm_rag.serve.limits import Limits
from stream2llm_rag.serve.messages import (
    Append,
    Cancel,
    Cancelled,
    ClientMessage,
    Describe,
    Error,
    Finish,
    Model,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Records,
    Sampling,
    ServerMessage,
    Update,
    decode_server,
    encode,
)
from stream2llm_rag.serve.service import Service

from .frames import FRAMES

NUM_ANSWER_TOKENS = 8


class Wire:
    """Gives ``frames`` one by one; then the client waits for the server to end, or with ``leaves`` is gone."""

    def __init__(self, frames: Sequence[ClientMessage | str | bytes], *, leaves: bool = False) -> None:
        self._frames = deque(frame if isinstance(frame, str | bytes) else encode(frame) for frame in frames)
        self._leaves = leaves
        self.sent: list[ServerMessage] = []
        self.closed: tuple[int, str] | None = None

    async def receive(self) -> str | bytes:
        await anyio.lowlevel.checkpoint()
        if self._frames:
            return self._frames.popleft()
        if self._leaves:
            for _ in range(30):  # most of what came is carried out
                await anyio.lowlevel.checkpoint()
            raise GoneError
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, text: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(decode_server(text))

    async def close(self, code: int, reason: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = (code, reason)

    def kinds(self) -> list[str]:
        return [type(message).__name__ for message in self.sent if not isinstance(message, Records)]

    @property
    def error(self) -> Error:
        last = self.sent[-1]
        assert isinstance(last, Error)
        return last

    @property
    def answer(self) -> list[int]:
        return [token for message in self.sent if isinstance(message, Output) for token in message.tokens]


@pytest.fixture
def service(fake: FakeEngine) -> Service:
    return make_service(fake)


def make_service(engine: FakeEngine, **limits: Any) -> Service:
    model = Model(name="tiny", max_model_len=engine.max_model_len, vocab_size=engine.vocab_size)
    return Service(engine, model, engine.tokenizer, Limits(**limits))


async def talk(service: Service, *frames: ClientMessage | str | bytes, leaves: bool = False) -> Wire:
    wire = Wire(frames, leaves=leaves)
    with anyio.fail_after(60):
        await Connection(service, wire).serve()
    assert isinstance(service.engine, FakeEngine)
    assert not service.engine.sessions
    return wire


async def test_a_stream_is_opened_grown_changed_and_answered(service: Service, fake: FakeEngine) -> None:
    wire = await talk(
        service,
        Describe(),
        Open(tokens=[5, 6], cache_salt="mine"),
        Append(tokens=[7], num_remaining=2),
        Update(tokens=[5, 8, 9]),
        Append(tokens=[10]),
        Finish(tokens=[11], sampling=Sampling(max_tokens=8)),
    )
    assert fake.prompts == [[5, 8, 9, 10, 11]]
    assert wire.kinds() == ["Model", "Opened", "Accepted", *["Output"] * NUM_ANSWER_TOKENS]
    assert wire.closed == (1000, "")
    last = wire.sent[-1]
    assert isinstance(last, Output)
    assert last.finish_reason == "length"


async def test_it_is_told_what_the_engine_did_before_the_tokens_that_came_of_it(service: Service) -> None:
    wire = await talk(service, Open(tokens=[5, 6]), Append(tokens=[7]), Finish())
    told = [(record.kind, at) for at, m in enumerate(wire.sent) if isinstance(m, Records) for record in m.records]
    first_output = next(at for at, message in enumerate(wire.sent) if isinstance(message, Output))
    assert [kind for kind, _ in told] == [StepKind.COMPUTED, StepKind.COMPUTED, StepKind.FINAL]
    assert all(at < first_output for _, at in told)


async def test_nothing_is_told_of_a_stream_before_it_is_opened(service: Service) -> None:
    wire = await talk(service, Open(tokens=[5, 6]), Finish())
    assert isinstance(wire.sent[0], Opened)
    assert isinstance(wire.sent[1], Records)


async def test_text_is_data_unless_it_says_that_it_is_formatted(service: Service, fake: FakeEngine) -> None:
    special = fake.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    await talk(
        service,
        Open(text="<|eot_id|>", formatted=True),
        Append(text="<|eot_id|> a page"),
        Finish(text="and a question"),
    )
    [prompt] = fake.prompts
    assert prompt[0] == special
    assert special not in prompt[1:]
    assert fake.tokenizer.decode(prompt[1:]) == "<|eot_id|> a pageand a question"


async def test_a_cancelled_stream_is_free_and_says_so(service: Service, fake: FakeEngine) -> None:
    wire = await talk(service, Open(tokens=[5]), Append(tokens=[6]), Cancel(), Append(tokens=[7]))
    assert wire.kinds() == ["Opened", "Cancelled"]
    assert wire.closed == (1000, "")
    assert not fake.prompts


async def test_a_client_that_goes_leaves_nothing(service: Service, fake: FakeEngine) -> None:
    wire = await talk(service, Open(tokens=[5]), Append(tokens=[6]), leaves=True)
    assert wire.kinds() == ["Opened"]
    assert wire.closed is None


async def test_a_connection_whose_task_is_cancelled_again_as_it_ends_is_closed(service: Service, fake: FakeEngine) -> None:
    wire, may_close = Wire([Open(tokens=[5])]), anyio.Event()
    close = wire.close

    async def close_late(code: int, reason: str) -> None:
        await may_close.wait()
        await close(code, reason)

    wire.close = close_late  # type: ignore[method-assign]
    task = asyncio.create_task(Connection(service, wire).serve())
    for _ in range(2):
        await anyio.wait_all_tasks_blocked()
        task.cancel()
    await anyio.wait_all_tasks_blocked()
    may_close.set()
    await asyncio.wait([task], timeout=30)
    assert task.cancelled()
    assert wire.closed is not None
    assert not fake.sessions


async def test_a_ping_is_answered_at_any_time(service: Service) -> None:
    wire = await talk(service, Ping(sent_s=1.5), Open(tokens=[5]), Ping(sent_s=2.5), Finish(), Ping(sent_s=3.5))
    pongs = [message.sent_s for message in wire.sent if isinstance(message, Pong)]
    assert pongs[:2] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("frames", "code", "said"),
    [
        ([Append(tokens=[5])], "out_of_order", "'append' came before 'open'"),
        ([Update(tokens=[5])], "out_of_order", "'update' came before 'open'"),
        ([Finish(tokens=[5])], "out_of_order", "'finish' came before 'open'"),
        ([Open(tokens=[5]), Open(tokens=[5])], "out_of_order", "has its stream already"),
        ([Open(), Finish()], "invalid_input", "before any token"),
        ([Open(tokens=[5]), Update(tokens=[])], "invalid_input", "no tokens"),
        ([Open(tokens=[10**9])], "invalid_input", "must be in"),
        ([Open(tokens=[5] * 9000)], "prompt_too_long", "9000 tokens"),
        ([Open(tokens=[5] * 8000), Append(tokens=[5] * 500)], "prompt_too_long", "8500 tokens"),
        ([Open(tokens=[5], text="a")], "bad_message", "Send one of them"),
        (["{"], "bad_message", "stream2llm.v1"),
        (['{"type": "open", "tokens": [1' + "0" * 30 + "]}"], "bad_message", "<= 2147483647"),
        ([b"\xff\xfe"], "bad_message", "stream2llm.v1"),
        ([Open(tokens=[5]), '{"type": "accepted"}'], "bad_message", "Invalid value 'accepted'"),
    ],
)
async def test_what_cannot_be_carried_out_ends_the_stream_with_its_reason(
    service: Service, frames: list[ClientMessage | str | bytes], code: str, said: str
) -> None:
    wire = await talk(service, *frames, Append(tokens=[6]), Finish(tokens=[7]))
    assert wire.error.code == code
    assert said in wire.error.message
    assert wire.closed == (REFUSALS[code].close, code)
    assert not wire.answer


async def test_a_message_beyond_the_limit_is_not_even_read(fake: FakeEngine) -> None:
    wire = await talk(make_service(fake, max_message_bytes=100), Open(tokens=[5]), "{" * 101)
    assert wire.error.code == "message_too_large"
    assert "101 bytes came, at most 100" in wire.error.message


async def test_a_server_may_take_less_context_than_its_model(fake: FakeEngine) -> None:
    wire = await talk(make_service(fake, max_context_tokens=10), Open(tokens=[5] * 6), Append(tokens=[5] * 4))
    assert wire.error.code == "prompt_too_long"
    assert "fewer than 10" in wire.error.message


async def test_an_engine_that_is_full_says_to_try_again(tokenizer: Any) -> None:
    engine = FakeEngine(tokenizer, max_sessions=1)
    service = make_service(engine)
    async with await engine.open([5]):
        wire = Wire([Open(tokens=[5])])
        await Connection(service, wire).serve()
    assert wire.error.code == "capacity"
    assert wire.closed == (1013, "capacity")


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"heartbeat_timeout_s": 0.02}, "not even a ping"), ({"idle_timeout_s": 0.02}, "brought its stream no further")],
)
async def test_a_client_that_falls_silent_is_dropped(fake: FakeEngine, limits: dict[str, float], said: str) -> None:
    wire = await talk(make_service(fake, **limits), Open(tokens=[5]))
    assert wire.error.code == "idle"
    assert said in wire.error.message


async def test_pings_alone_do_not_keep_a_stream_for_ever(fake: FakeEngine) -> None:
    class Pinging(Wire):
        async def receive(self) -> str | bytes:
            await anyio.sleep(0.001)
            return self._frames.popleft() if self._frames else encode(Ping())

    wire = Pinging([Open(tokens=[5])])
    await Connection(make_service(fake, heartbeat_timeout_s=60, idle_timeout_s=0.05), wire).serve()
    assert wire.error.code == "idle"
    assert not fake.sessions


async def test_a_client_that_has_asked_may_wait_longer_for_its_answer_than_a_stream_may_rest(tokenizer: Any) -> None:
    idle_timeout_s = 0.2

    class Thinking(FakeEngine):
        async def submit(self, *args: Any) -> AsyncIterator[OutputDelta]:
            await anyio.sleep(5 * idle_timeout_s)
            return await super().submit(*args)

    wire = await talk(make_service(Thinking(tokenizer), idle_timeout_s=idle_timeout_s), Open(tokens=[5]), Finish(tokens=[6]))
    assert len(wire.answer) == NUM_ANSWER_TOKENS
    assert wire.closed == (1000, "")


async def test_a_client_that_reads_nothing_is_dropped(fake: FakeEngine) -> None:
    class Stalled(Wire):
        async def send(self, text: str) -> None:
            if "output" in text:
                await anyio.sleep_forever()
            await super().send(text)

    wire = Stalled([Open(tokens=[5]), Finish(tokens=[6])])
    await Connection(make_service(fake, send_timeout_s=0.02), wire).serve()
    assert wire.closed == (1008, "slow_reader")
    assert not fake.sessions


async def test_a_stream_whose_engine_dies_learns_it_between_two_messages(service: Service, fake: FakeEngine) -> None:
    wire = Wire([Open(tokens=[5])])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(service, wire).serve)
        while "Opened" not in wire.kinds():
            await anyio.lowlevel.checkpoint()
        fake.lifeline.die()
    assert wire.error.code == "engine_died"
    assert wire.closed == (1012, "engine_died")


async def test_a_failure_of_ours_is_told_without_its_inside(
    service: Service, fake: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(fake, "send", fail)
    wire = await talk(service, Open(tokens=[5]))
    assert wire.error.code == "internal"
    assert "secret" not in wire.error.message
    assert "a secret" in caplog.text


@given(frames=st.lists(FRAMES, max_size=8))
async def test_whatever_comes_a_connection_ends_in_order_and_leaves_nothing(tokenizer: Any, frames: list[str | bytes]) -> None:
    wire = await talk(make_service(FakeEngine(tokenizer)), *frames, leaves=True)
    errors = [message for message in wire.sent if isinstance(message, Error)]
    assert len(errors) <= 1
    if errors:
        assert errors[0] is wire.sent[-1]
        assert errors[0].code in REFUSALS
        assert errors[0].code != "internal", errors[0].message
        assert wire.closed == (REFUSALS[errors[0].code].close, errors[0].code)


STEPS = st.lists(
    st.one_of(
        st.builds(Open, tokens=st.lists(st.integers(5, 99), max_size=4)),
        st.builds(Append, tokens=st.lists(st.integers(5, 99), max_size=4)),
        st.builds(Update, tokens=st.lists(st.integers(5, 99), min_size=1, max_size=4)),
        st.builds(Finish, tokens=st.lists(st.integers(5, 99), max_size=4)),
        st.builds(Cancel),
    ),
    max_size=8,
)


@given(opens=st.booleans(), steps=STEPS)
async def test_an_answer_is_to_the_context_that_was_sent_or_there_is_none(
    tokenizer: Any, opens: bool, steps: list[ClientMessage]
) -> None:
    frames = [Open(tokens=[5]), *steps] if opens else steps
    engine = FakeEngine(tokenizer)
    wire = await talk(make_service(engine), *frames, Cancel())
    prompt, outcome = expected(frames)
    assert engine.prompts == ([] if prompt is None else [prompt])
    assert bool(wire.answer) <= (prompt is not None)
    if outcome is Cancelled:
        assert any(isinstance(message, Cancelled) for message in wire.sent)
    if outcome is Error:
        assert isinstance(wire.sent[-1], Error)


def expected(frames: Sequence[ClientMessage]) -> tuple[list[int] | None, type[ServerMessage] | None]:
    """The slow, exact way: the prompt that is answered, and how the connection ends where that is certain."""
    prompt: list[int] | None = None
    for frame in frames:
        match frame:
            case Cancel():
                return None, Cancelled
            case Open(tokens=tokens) if prompt is None:
                prompt = list(tokens or [])
            case Append(tokens=tokens) if prompt is not None:
                prompt += tokens or []
            case Update(tokens=tokens) if prompt is not None:
                prompt = list(tokens or [])
            case Finish(tokens=tokens) if prompt is not None:
                prompt += tokens or []
                return (prompt, None) if prompt else (None, Error)
            case _:
                return None, Error
    return None, Cancelled


def test_what_is_expected_is_not_always_the_same() -> None:
    assert expected([Open(tokens=[5]), Append(tokens=[6]), Finish(tokens=[7])]) == ([5, 6, 7], None)
    assert expected([Append(tokens=[6])]) == (None, Error)
    assert expected([Open(), Cancel()]) == (None, Cancelled)
