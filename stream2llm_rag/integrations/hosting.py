"""Where a retriever runs: on the loop that it belongs to, whoever reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from stream2llm_rag.documents import ContextDelta
from stream2llm_rag.integrations.crossing import Outlet, Transfer, closing, forward
from stream2llm_rag.integrations.streams import LoopStream, ThreadStream, run_on_new_loop
from stream2llm_rag.retrievers.base import StreamingRetriever

T = TypeVar("T")


class HostedRetriever:
    """A retriever that runs on ``loop``, whoever reads it.

    ``start`` starts a transfer there. Who will end the loop hands in a function that also notes it: transfers end before.
    """

    def __init__(
        self,
        retriever: StreamingRetriever,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[Transfer[Any]], None] = Transfer.start,
    ) -> None:
        self.retriever = retriever
        self.loop = loop
        self.start = start

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        """The deltas of the retriever, each as soon as it comes. Raises what the retriever raises."""
        async with closing(self._deltas(query)) as deltas:
            async for delta in deltas:
                yield delta

    def _deltas(self, query: str) -> AsyncIterator[ContextDelta]:
        if asyncio.get_running_loop() is self.loop:
            return self.retriever.stream(query)
        stream = LoopStream(self.loop, forward(lambda: self.retriever.stream(query)))
        self.start(stream.transfer)
        return stream


def at_home(retriever: StreamingRetriever) -> StreamingRetriever:
    """Let a retriever run on the loop that runs now, where what it has opened may belong; one that is hosted stays there."""
    return retriever if isinstance(retriever, HostedRetriever) else HostedRetriever(retriever, asyncio.get_running_loop())


def run_hosted(retriever: StreamingRetriever, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine that reads ``retriever``, from a thread: on the loop that hosts it, else on a new one.

    Raises :class:`~stream2llm_rag.errors.LifecycleError` on the loop that hosts it.
    """
    if not isinstance(retriever, HostedRetriever):
        return run_on_new_loop(make)

    async def produce(outlet: Outlet[T]) -> None:
        outlet.emit(await make())

    results = ThreadStream(retriever.loop, produce)
    retriever.start(results.transfer)
    with results:
        return next(results)
