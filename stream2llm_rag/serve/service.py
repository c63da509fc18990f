"""What all connections of a server share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import anyio
import anyio.to_thread

from stream2llm_rag.engine.feedback import StepRecord
from stream2llm_rag.engine.session import Session, TokenIds
from stream2llm_rag.prompt.encoding import TextEncoder
from stream2llm_rag.serve.limits import Clients, Limits
from stream2llm_rag.serve.messages import Model

_NUM_TOKENIZING = 4  # threads at once, as in the pipeline: the engine's processes want some of the processor


class Engine(Protocol):
    """What a server of streams needs of an engine; ``Stream2LLMEngine`` and ``FakeEngine`` have it."""

    async def open(
        self,
        prefix: TokenIds = (),
        *,
        on_record: Callable[[StepRecord], None] | None = None,
        cache_salt: str | None = None,
    ) -> Session:
        """Open a streaming request."""
        ...


class Service:
    """An engine to open streams on, the model behind it, its tokenizer, and the limits of clients."""

    def __init__(self, engine: Engine, model: Model, tokenizer: Any, limits: Limits) -> None:
        self.engine = engine
        self.model = model
        self.limits = limits
        self.clients = Clients(limits.max_streams_per_client)
        self._encoder = TextEncoder(tokenizer)
        self._tokenizing = anyio.CapacityLimiter(_NUM_TOKENIZING)

    async def encode(self, text: str, *, formatted: bool) -> list[int]:
        """Token ids of a client's text, made off the event loop. Special tokens are special in ``formatted`` text alone."""
        encode = self._encoder.encode_template if formatted else self._encoder.encode_data
        return await anyio.to_thread.run_sync(encode, text, limiter=self._tokenizing)
