"""One stream of one client: messages in, operations of a session out, and what comes of them back.

Knows no WebSocket and no vLLM. Every error ends the stream: appends are not answered, so a client that went on after one that
was refused would get an answer to another context than it thinks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import anyio

from stream2llm_rag.engine.feedback import StepRecord
from stream2llm_rag.engine.session import OutputDelta, Session
from stream2llm_rag.errors import InvalidInputError, PromptTooLongError, Stream2LLMError
from stream2llm_rag.serve.codes import REFUSALS, RefusedError, code_of
from stream2llm_rag.serve.messages import (
    Accepted,
    Append,
    Cancel,
    Cancelled,
    ClientMessage,
    Describe,
    Error,
    Finish,
    Open,
    Opened,
    Ping,
    Pong,
    Record,
    Records,
    ServerMessage,
    Update,
    decode_client,
    encode,
    to_output,
)
from stream2llm_rag.serve.service import Service
from stream2llm_rag.shielding import run_shielded

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

logger = logging.getLogger(__name__)

_MAX_WAITING_MESSAGES = 4  # read ahead of the one that is carried out; further ones wait in the socket
_NORMAL_CLOSURE = 1000


class GoneError(Exception):
    """The other side has closed the connection, or it broke."""


class Transport(Protocol):
    """A connection that carries texts. Each call raises :class:`GoneError` when the other side is gone."""

    async def receive(self) -> str | bytes:
        """The next text that came."""
        ...

    async def send(self, text: str) -> None:
        """Send a text; waits while the other side takes nothing."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """End the connection."""
        ...


class Connection:
    """Serves one stream over ``transport``, from its first message to its end."""

    def __init__(self, service: Service, transport: Transport) -> None:
        self._service = service
        self._limits = service.limits
        self._transport = transport
        self._session: Session | None = None
        self._is_asked = False
        self._is_answering = False
        self._end: Error | GoneError | None = None
        self._records: list[Record] = []  # at most a few for each step until they are sent, or the client is too slow
        self._recorded = anyio.Event()
        self._writing = anyio.Lock()

    async def serve(self) -> None:
        """Serve until the stream has ended; what it held is free then. Raises nothing that a client can cause."""
        accept, inbox = anyio.create_memory_object_stream[ClientMessage](_MAX_WAITING_MESSAGES)
        try:
            async with accept, inbox, anyio.create_task_group() as tasks:
                tasks.start_soon(self._run, tasks, lambda: self._read(accept))
                tasks.start_soon(self._run, tasks, self._tell_records)
                tasks.start_soon(self._run, tasks, lambda: self._work(inbox, tasks))
        finally:
            await run_shielded(self._leave())

    async def _leave(self) -> None:
        if self._session is not None:
            await self._session.abort()
        await part(self._transport, self._end, self._limits.send_timeout_s)

    async def _run(self, tasks: TaskGroup, job: Callable[[], Awaitable[None]]) -> None:
        """Run one job of the connection; when it ends, all end. The first that fails says why."""
        end: Error | GoneError | None = None
        try:
            await job()
        except GoneError as error:
            end = error
        except RefusedError as error:
            end = Error(code=error.code, message=error.message)
        except Stream2LLMError as error:
            end = Error(code=code_of(error), message=str(error))
        except Exception:
            logger.exception("a stream failed")
            end = Error(code="internal", message="the server failed; its log says why.")
        if not tasks.cancel_scope.cancel_called:
            self._end = end
            tasks.cancel_scope.cancel()

    async def _read(self, inbox: MemoryObjectSendStream[ClientMessage]) -> None:
        """Read while others work, a few messages ahead: so a client that goes away is noticed, unless so many wait already."""
        worked_at = anyio.current_time()
        while True:
            message = self._checked(await self._receive(worked_at))
            if isinstance(message, Ping):
                await self._send(Pong(sent_s=message.sent_s, server_time_s=time.monotonic()))
                continue
            self._is_asked |= isinstance(message, Finish)
            await inbox.send(message)
            worked_at = anyio.current_time()

    async def _receive(self, worked_at: float) -> bytes:
        """What comes next; refused as idle when that takes too long.

        After its question a client owes nothing but pings, from when that is read: what it waits for then is ours to bring.
        """
        patience_s, because = self._limits.heartbeat_timeout_s, "sent nothing, not even a ping"
        left_s = worked_at + self._limits.idle_timeout_s - anyio.current_time()
        if left_s < patience_s and not self._is_asked:
            patience_s, because = max(0.0, left_s), "brought its stream no further"
        try:
            with anyio.fail_after(patience_s):
                data = await self._transport.receive()
        except TimeoutError:
            raise RefusedError("idle", f"the client {because} for too long; see the limits in 'opened'.") from None
        return data.encode() if isinstance(data, str) else data

    def _checked(self, data: bytes) -> ClientMessage:
        if len(data) > self._limits.max_message_bytes:
            raise RefusedError(
                "message_too_large",
                f"a message of {len(data)} bytes came, at most {self._limits.max_message_bytes} are taken. Send less at once.",
            )
        try:
            return decode_client(data)
        except InvalidInputError as error:
            raise RefusedError("bad_message", str(error)) from error

    async def _work(self, inbox: MemoryObjectReceiveStream[ClientMessage], tasks: TaskGroup) -> None:
        """Carry messages out, in order, until the answer takes over or the client cancels."""
        while True:
            message = await self._next(inbox)
            if isinstance(message, Cancel):
                await self._cancel()
                return
            if isinstance(message, Finish):
                outputs = await self._finish(message)
                self._is_answering = True
                await self._send(Accepted())
                tasks.start_soon(self._run, tasks, lambda outputs=outputs: self._answer(outputs))
                continue
            await self._take(message)

    async def _next(self, inbox: MemoryObjectReceiveStream[ClientMessage]) -> ClientMessage:
        if self._session is None or self._is_answering:
            return await inbox.receive()
        with self._session.while_alive():
            return await inbox.receive()

    async def _take(self, message: ClientMessage) -> None:
        match message:
            case Describe():
                await self._send(self._service.model)
            case Open():
                await self._open(message)
            case Append():
                session = self._opened(message)
                await session.append(await self._tokens(message, session.num_tokens), num_remaining=message.num_remaining)
            case Update():
                session = self._opened(message)
                await session.update(await self._tokens(message, 0), num_remaining=message.num_remaining)

    async def _open(self, message: Open) -> None:
        if self._session is not None:
            raise RefusedError("out_of_order", "this connection has its stream already. Connect again for another one.")
        self._session = await self._service.engine.open(on_record=self._note, cache_salt=message.cache_salt)
        limits = self._limits
        await self._send(
            Opened(
                stream_id=self._session.request_id,
                heartbeat_timeout_s=limits.heartbeat_timeout_s,
                idle_timeout_s=limits.idle_timeout_s,
                max_message_bytes=limits.max_message_bytes,
                server_time_s=time.monotonic(),
            )
        )
        await self._session.append(await self._tokens(message, 0))  # behind the answer, which no record comes before

    async def _finish(self, message: Finish) -> AsyncIterator[OutputDelta]:
        session = self._opened(message)
        return await session.finish(await self._tokens(message, session.num_tokens), message.sampling.given())

    async def _cancel(self) -> None:
        if self._session is not None:
            await self._session.abort()
        await self._send(Cancelled())

    async def _answer(self, outputs: AsyncIterator[OutputDelta]) -> None:
        async for delta in outputs:  # vLLM merges what comes while the client takes nothing
            await self._send(to_output(delta))

    def _opened(self, message: ClientMessage) -> Session:
        if self._session is None:
            raise RefusedError("out_of_order", f"'{type(message).__name__.lower()}' came before 'open'. Open the stream first.")
        return self._session

    async def _tokens(self, piece: Open | Append | Update | Finish, num_before: int) -> list[int]:
        if piece.tokens is not None and piece.text is not None:
            raise RefusedError("bad_message", "tokens and text came together. Send one of them.")
        tokens = piece.tokens or []
        if piece.text:
            tokens = await self._service.encode(piece.text, formatted=piece.formatted)
        limit, num_tokens = self._limits.max_context_tokens, num_before + len(tokens)
        if limit is not None and num_tokens >= limit:
            raise PromptTooLongError(f"the prompt would have {num_tokens} tokens; this server takes fewer than {limit}.")
        return tokens

    def _note(self, record: StepRecord) -> None:
        self._records.append(Record(str(record.kind), record.started_s, record.ended_s, record.num_tokens))
        self._recorded.set()

    async def _tell_records(self) -> None:
        while True:
            await self._recorded.wait()
            self._recorded = anyio.Event()
            async with self._writing:
                await self._write_records()

    async def _send(self, message: ServerMessage) -> None:
        async with self._writing:
            await self._write_records()  # before the tokens that came of these steps
            await self._write(message)

    async def _write_records(self) -> None:
        records, self._records = self._records, []
        if records:
            await self._write(Records(records=records))

    async def _write(self, message: ServerMessage) -> None:
        try:
            with anyio.fail_after(self._limits.send_timeout_s):
                await self._transport.send(encode(message))
        except TimeoutError:
            raise RefusedError("slow_reader", f"nothing was taken for {self._limits.send_timeout_s:g} s.") from None


async def part(transport: Transport, end: Error | GoneError | None, timeout_s: float) -> None:
    """End a connection, and tell the other side why, if it is there; for ``timeout_s`` seconds at most."""
    if isinstance(end, GoneError):
        return
    with anyio.move_on_after(timeout_s), suppress(GoneError):
        if end is None:
            await transport.close(_NORMAL_CLOSURE, "")
            return
        if end.code != "slow_reader":
            await transport.send(encode(end))
        await transport.close(REFUSALS[end.code].close, end.code)
