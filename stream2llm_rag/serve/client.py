"""A served engine, used like a local one."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidProxy, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from stream2llm_rag.engine.feedback import StepRecord
from stream2llm_rag.engine.session import OutputDelta, Session, TokenIds
from stream2llm_rag.errors import (
    CapacityError,
    EngineStartError,
    EngineUnreachable,
    InvalidInputError,
    LifecycleError,
)
from stream2llm_rag.serve.addresses import authorization, stream_url, without_secrets
from stream2llm_rag.serve.messages import SUBPROTOCOL, Describe, Model
from stream2llm_rag.serve.stream import RemoteStream, exchange
from stream2llm_rag.serve.tokenizers import unpack

if TYPE_CHECKING:
    from vllm import SamplingParams

_MAX_ANSWER_BYTES = 2**26  # a tokenizer of a quarter of a million words takes 45 MB in base64


class RemoteEngine:
    """An engine behind ``stream2llm serve``, with the sessions of a local one; for ``StreamingRAG`` and the integrations.

    ``url`` is the server's (``http://host:8000``, ``https://...``), ``api_key`` one of its keys, ``ssl`` a context for
    certificates that the system does not know. ``tokenizer`` is the model's; without it the server's is fetched once.
    ``max_sessions`` bounds the sessions open at once, ``connect_timeout_s`` the wait for the server, in seconds.

    Used as ``async with RemoteEngine(url) as engine``, on one event loop. Each session is a connection of its own; leaving it
    ends that. Raises :class:`EngineStartError` when the server cannot be used, later :class:`EngineUnreachable`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        tokenizer: Any = None,
        ssl: ssl_module.SSLContext | None = None,
        max_sessions: int = 1024,
        connect_timeout_s: float = 30.0,
    ) -> None:
        if max_sessions < 1:
            raise InvalidInputError(f"max_sessions must be at least 1, got {max_sessions}.")
        self._url = stream_url(url)
        if ssl is not None and not self._url.startswith("wss:"):
            raise InvalidInputError(
                f"ssl= is for https, but {without_secrets(self._url)} came. Write https://..., or leave it out."
            )
        self._headers = authorization(api_key)
        self._ssl = ssl
        self._max_sessions = max_sessions
        self._connect_timeout_s = connect_timeout_s
        self._tokenizer = tokenizer
        self._model: Model | None = None
        self._streams: dict[Session, RemoteStream] = {}
        self._num_opening = 0
        self._state = "not opened yet"

    async def __aenter__(self) -> Self:
        if self._state != "not opened yet":
            raise LifecycleError(f"this engine is {self._state}. Make a new one: an engine is opened once.")
        self._state = "closed"
        try:
            self._model = await self._describe()
        except EngineUnreachable as error:
            raise EngineStartError(str(error)) from error
        if self._tokenizer is None:
            self._tokenizer = await anyio.to_thread.run_sync(unpack, self._model.tokenizer, self._model.name)
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abort open sessions. Calling it again does nothing."""
        self._state = "closed"
        closed = LifecycleError("this engine is closed. Use it inside: async with RemoteEngine(...) as engine.")
        async with anyio.create_task_group() as group:  # a server that is gone may take seconds to be given up, for each
            for session, stream in list(self._streams.items()):
                stream.cut(closed)
                group.start_soon(session.abort)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, with the chat template of the server."""
        self._running()
        return self._tokenizer

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._running().max_model_len

    @property
    def num_sessions(self) -> int:
        """Sessions open here."""
        return len(self._streams)

    async def open(
        self,
        prefix: TokenIds = (),
        *,
        on_record: Callable[[StepRecord], None] | None = None,
        cache_salt: str | None = None,
    ) -> Session:
        """Open a streaming request that starts with ``prefix``; as :meth:`Stream2LLMEngine.open`.

        Times of records are those of this machine, to half the fastest round trip. Raises :class:`CapacityError` when
        ``max_sessions`` are open here or as many at the server as it takes, :class:`EngineUnreachable` without a connection.
        """
        model = self._running()
        if len(self._streams) + self._num_opening >= self._max_sessions:
            raise CapacityError(f"{len(self._streams)} sessions are open, the limit is max_sessions={self._max_sessions}.")
        self._num_opening += 1
        try:
            connection = await self._connect()
            if self._state != "open":  # it was closed meanwhile
                connection.transport.abort()
                self._running()
            stream = RemoteStream(connection, model)
            session = Session(stream, on_close=self._forget, on_record=on_record, cache_salt=cache_salt)
            self._streams[session] = stream
        finally:
            self._num_opening -= 1
        try:
            await stream.open(session, cache_salt, self._connect_timeout_s)
        except BaseException:
            await session.abort()
            raise
        return await session.start(prefix)

    async def generate(
        self, prompt: str | TokenIds, sampling: Mapping[str, Any] | SamplingParams | None = None
    ) -> AsyncIterator[OutputDelta]:
        """Answer a prompt that is complete."""
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        async with await self.open() as session:
            async for output in await session.finish(token_ids, sampling):
                yield output

    def _forget(self, session: Session) -> None:
        self._streams.pop(session, None)

    def _running(self) -> Model:
        if self._state != "open" or self._model is None:
            raise LifecycleError(f"this engine is {self._state}. Use it inside: async with RemoteEngine(...) as engine.")
        return self._model

    async def _describe(self) -> Model:
        connection = await self._connect()
        try:
            return await exchange(connection, Describe(), Model, self._connect_timeout_s)
        finally:
            await connection.close()

    async def _connect(self) -> ClientConnection:
        options: dict[str, Any] = {} if self._ssl is None else {"ssl": self._ssl}
        where = without_secrets(self._url)
        try:
            return await connect(
                self._url,
                additional_headers=self._headers,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                max_size=_MAX_ANSWER_BYTES,
                compression=None,  # token ids on a fast network: it would cost more time than it saves
                ping_interval=None,  # the protocol has its own
                open_timeout=self._connect_timeout_s,
                **options,
            )
        except InvalidStatus as error:
            raise EngineUnreachable(_refusal(where, error.response.status_code)) from error
        except InvalidProxy as error:  # its text has the proxy's password; so has a traceback that shows it as the cause
            raise EngineUnreachable(_bad_proxy(where, f": {error.msg}")) from None
        except (OSError, TimeoutError, WebSocketException, ImportError) as error:  # ImportError: of a proxy's protocol
            raise EngineUnreachable(f"{where} cannot be reached: {str(error) or type(error).__name__}") from error
        except ValueError:  # of a proxy that cannot even be parsed, as our own address can; its text may have a part of that
            raise EngineUnreachable(_bad_proxy(where)) from None


def _bad_proxy(url: str, why: str = "") -> str:
    return f"{url} is to be reached by a proxy whose address is none{why}. Look at http_proxy and its like in the environment."


def _refusal(url: str, status: int) -> str:
    reasons = {
        401: "wants another API key. Pass api_key=, one of those that the server was started with.",
        403: "refuses the connection: it may speak another version of the protocol, or has no such route.",
        404: "has no streams: it was not started by `stream2llm serve`.",
    }
    return f"{url} {reasons.get(status, f'refuses the connection with HTTP status {status}.')}"
