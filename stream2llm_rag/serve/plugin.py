"""The route, as vLLM's server takes it in (entry point ``vllm.endpoint_plugins``). Inert in servers that are not ours."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from stream2llm_rag.errors import CapacityError
from stream2llm_rag.serve.codes import code_of
from stream2llm_rag.serve.connection import Connection, GoneError, part
from stream2llm_rag.serve.limits import client_of, is_origin_allowed
from stream2llm_rag.serve.messages import PATH, SUBPROTOCOL, Error
from stream2llm_rag.serve.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

_service: ContextVar[Service | None] = ContextVar("stream2llm_service", default=None)


@contextmanager
def serving(service: Service) -> Iterator[None]:
    """A server that is built inside has the route."""
    token = _service.set(service)
    try:
        yield
    finally:
        _service.reset(token)


class StreamPlugin:
    """Adds the WebSocket to vLLM's routes. Below ``/v1``, so that vLLM's own check of API keys guards it."""

    name = "stream2llm"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the route."""
        if _service.get() is not None:
            app.router.add_websocket_route(PATH, stream, "stream2llm")

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Leave for the route what it needs."""
        state.stream2llm = _service.get()
        state.stream2llm_origins = tuple(args.allowed_origins)
        state.stream2llm_has_keys = has_api_key(args)


def has_api_key(args: Namespace) -> bool:
    """Whether vLLM's server asks for a key."""
    import vllm.envs as envs

    return bool([key for key in (args.api_key or [envs.VLLM_API_KEY]) if key])


class WebSocketTransport:
    """A WebSocket of Starlette as a :class:`~stream2llm_rag.serve.connection.Transport`."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self) -> str | bytes:
        """The next text, or bytes with the same in UTF-8."""
        try:
            event = await self._websocket.receive()
        except (RuntimeError, WebSocketDisconnect) as error:  # RuntimeError: after its end
            raise GoneError from error
        if event["type"] == "websocket.disconnect":
            raise GoneError
        text: str | None = event.get("text")
        return text if text is not None else bytes(event["bytes"])

    async def send(self, text: str) -> None:
        """Send a text."""
        try:
            await self._websocket.send_text(text)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise GoneError from error

    async def close(self, code: int, reason: str) -> None:
        """Close with a code of RFC 6455."""
        try:
            await self._websocket.close(code, reason)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise GoneError from error


async def stream(websocket: WebSocket) -> None:
    """Serve one connection."""
    state, headers = websocket.app.state, websocket.headers
    service: Service = state.stream2llm
    offered = websocket.scope["subprotocols"]
    if not is_origin_allowed(headers, state.stream2llm_origins) or (offered and SUBPROTOCOL not in offered):
        await websocket.close()  # before it was accepted: the handshake fails with 403
        return
    await websocket.accept(SUBPROTOCOL if offered else None)
    transport = WebSocketTransport(websocket)
    host = websocket.client.host if websocket.client else None
    try:
        with service.clients.place(client_of(headers, host, has_keys=state.stream2llm_has_keys)):
            await Connection(service, transport).serve()
    except CapacityError as error:
        await part(transport, Error(code=code_of(error), message=str(error)), service.limits.send_timeout_s)
