"""One remote stream: the client's end of a connection, as the wire of an ordinary :class:`Session`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
from websockets.exceptions import ConnectionClosed

from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.protocol import Op, OpKind
from stream2llm_rag.engine.session import OutputDelta, Session, Submission
from stream2llm_rag.errors import EngineUnreachable, InvalidInputError, Stream2LLMError
from stream2llm_rag.serve.clock import RemoteClock
from stream2llm_rag.serve.codes import error_of
from stream2llm_rag.serve.messages import (
    Accepted,
    Append,
    Cancel,
    ClientMessage,
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
    from_output,
)

if TYPE_CHECKING:
    from vllm import SamplingParams
    from websockets.asyncio.client import ClientConnection

T = TypeVar("T", Model, Opened)

_BEATS_PER_TIMEOUT = 3
_GOODBYE_S = 5.0  # for the end of a connection whose other side takes nothing


class RemoteStream:
    """What a session needs of its engine, over one connection. Its lifeline is cut when the connection or the server fails."""

    def __init__(self, connection: ClientConnection, model: Model) -> None:
        self.lifeline = Lifeline()
        self.max_model_len = model.max_model_len
        self.vocab_size = model.vocab_size
        self._connection = connection
        self._clock = RemoteClock()
        self._session: Session | None = None
        self._accepted = anyio.Event()
        self._is_sure = True  # of the prompt that the server has: a message whose sending was cancelled may have got there
        self._is_answered = False
        self._outputs: deque[OutputDelta] = deque()
        self._moved = anyio.Event()
        self._heard_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, session: Session, cache_salt: str | None, timeout_s: float) -> None:
        """Open the stream and listen. Raises what the server refuses it with, EngineUnreachable after ``timeout_s`` seconds."""
        self._session = session
        sent_s = time.monotonic()
        reply = await exchange(self._connection, Open(cache_salt=cache_salt), Opened, timeout_s)
        self._clock.note(sent_s, reply.server_time_s, time.monotonic())
        self._tasks = [
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._beat(reply.heartbeat_timeout_s)),
        ]

    async def send(self, session: Session, op: Op, token_ids: list[int], arrival_time: float) -> None:
        """Send an append or an update."""
        kind = Append if op.kind is OpKind.APPEND else Update
        was_sure, self._is_sure = self._is_sure, False
        await self._send(kind(tokens=token_ids, num_remaining=op.num_remaining))
        self._is_sure = was_sure or op.kind is OpKind.UPDATE

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        """Send the finish, of which only the suffix is new to the server; its outputs."""
        sampling, num_known = to_sampling(submission.sampling), session.num_tokens
        if not self._is_sure:
            num_known = max(1, num_known)
            await self._send(Update(tokens=submission.token_ids[:num_known]))
        await self._send(Finish(tokens=submission.token_ids[num_known:], sampling=sampling))
        with self.lifeline.held():
            await self._accepted.wait()
        return self._answer()

    async def drop(self, session: Session, submitted: bool) -> None:
        """Cancel, and end the connection; the server frees everything at once, or when it misses us."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with anyio.move_on_after(_GOODBYE_S), suppress(ConnectionClosed):
            await self._connection.send(encode(Cancel()))
        with anyio.move_on_after(_GOODBYE_S):
            await self._connection.close()
        self._connection.transport.abort()  # nothing, where it is closed already

    def cut(self, error: Stream2LLMError) -> None:
        """End everything that waits for this stream with ``error``."""
        self.lifeline.cut(error)

    async def _send(self, message: ClientMessage) -> None:
        with self.lifeline.held():
            try:
                await self._connection.send(encode(message))
            except ConnectionClosed as error:
                await asyncio.wait(self._tasks[:1])  # what was received before the end may say why
                self.cut(_broken(error))
                self.lifeline.check()

    async def _answer(self) -> AsyncIterator[OutputDelta]:
        is_finished = False
        while not is_finished:
            while not self._outputs:
                self._moved = anyio.Event()
                with self.lifeline.held():
                    await self._moved.wait()
            delta = self._outputs.popleft()
            is_finished = delta.finish_reason is not None
            yield delta

    async def _listen(self) -> None:
        """Take what comes until the connection ends; at once, so that the server never waits for a slow reader of ours."""
        try:
            with _translated():
                while not self._is_answered:
                    data = await self._connection.recv()
                    self._heard_s = time.monotonic()
                    self._take(decode_server(data))
        except EngineUnreachable as error:
            self.cut(error)

    def _take(self, message: ServerMessage) -> None:
        match message:
            case Records():
                self._note(message)
            case Accepted():
                self._accepted.set()
            case Output():
                self._is_answered = message.finish_reason is not None
                self._outputs.append(from_output(message))
                self._moved.set()
            case Pong():
                self._clock.note(message.sent_s, message.server_time_s, self._heard_s)
            case Error():
                self.cut(error_of(message.code, message.message))

    def _note(self, message: Records) -> None:
        assert self._session is not None
        for record in message.records:
            times = self._clock.ours(record.started_s), self._clock.ours(record.ended_s)
            if record.kind not in set(StepKind):  # one of a newer server
                continue
            self._session.take_record(StepRecord(self._session.request_id, StepKind(record.kind), *times, record.num_tokens))

    async def _beat(self, timeout_s: float) -> None:
        """Show life, and look for it."""
        while True:
            beat_s = timeout_s / _BEATS_PER_TIMEOUT
            with anyio.move_on_after(beat_s), suppress(ConnectionClosed):  # which the listener tells of
                await self._connection.send(encode(Ping(sent_s=time.monotonic())))
            await asyncio.sleep(beat_s)
            if time.monotonic() - self._heard_s > timeout_s:
                self.cut(EngineUnreachable(f"the server has said nothing for {timeout_s:g} s."))


async def exchange(connection: ClientConnection, message: ClientMessage, answer: type[T], timeout_s: float) -> T:
    """Send the first message of its kind and return its answer. Raises what the server refuses it with."""
    with _translated(), anyio.fail_after(timeout_s):
        with suppress(ConnectionClosed):  # a server that refused us at once has said why
            await connection.send(encode(message))
        reply = decode_server(await connection.recv())
    if isinstance(reply, Error):
        raise error_of(reply.code, reply.message)
    if not isinstance(reply, answer):
        raise EngineUnreachable(f"the server answered {type(message).__name__!r} with {type(reply).__name__!r}.")
    return reply


def to_sampling(sampling: Mapping[str, Any] | SamplingParams) -> Sampling:
    """The fields that are sent, checked. InvalidInputError names one that cannot be."""
    given = dict(sampling) if isinstance(sampling, Mapping) else _fields_of(sampling)
    try:
        return msgspec.convert(msgspec.to_builtins(given), Sampling, str_keys=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidInputError(f"sampling={given!r} cannot be sent to a served engine: {error}") from error


def _fields_of(params: SamplingParams) -> dict[str, Any]:
    """What of vLLM's ``SamplingParams`` is not as it is by default, output_kind aside, which streams decide."""
    default = type(params)()
    names = [name for name in params.__struct_fields__ if not name.startswith("_") and name != "output_kind"]
    return {name: getattr(params, name) for name in names if getattr(params, name) != getattr(default, name)}


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the connection as ours."""
    try:
        yield
    except ConnectionClosed as error:
        raise _broken(error) from error
    except TimeoutError as error:
        raise EngineUnreachable("the server has accepted the connection, but does not answer.") from error
    except InvalidInputError as error:
        raise EngineUnreachable(f"the server speaks another protocol: {error}") from error


def _broken(error: ConnectionClosed) -> EngineUnreachable:
    return EngineUnreachable(f"the connection to the server has ended: {error}")
