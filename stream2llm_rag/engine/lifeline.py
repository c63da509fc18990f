"""Whether an engine serves, and how those who wait for it learn at once that it no longer does.

vLLM tells of a dead process only those requests that its output processor knows: a stream that is not finished yet, and a
caller that waits for an answer of the core (``AsyncMPClient.call_utility_async``), would wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from stream2llm_rag.errors import EngineDied, LifecycleError, Stream2LLMError


class Lifeline:
    """Belongs to one engine and its event loop. Whatever waits under :meth:`held` ends as soon as the line is cut."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._end: Stream2LLMError | None = None

    def die(self, cause: BaseException | None = None) -> None:
        """A process of the engine is gone: everything that waits, or comes later, gets :class:`EngineDied`."""
        died = EngineDied("a process of the engine is gone. Close this engine and open a new one; its log says why.")
        died.__cause__ = cause
        self.cut(died)

    def close(self) -> None:
        """The engine was closed: everything that waits, or comes later, gets :class:`LifecycleError`."""
        self.cut(LifecycleError("this engine is closed. Use it inside: async with Stream2LLMEngine(...) as engine."))

    def cut(self, end: Stream2LLMError) -> None:
        """Everything that waits, or comes later, gets ``end``. The first one counts."""
        if self._end is None:
            self._end = end
        for scope in list(self._scopes):
            scope.cancel()

    def check(self) -> None:
        """Raise if the line is cut."""
        if self._end is not None:
            raise type(self._end)(*self._end.args) from self._end.__cause__  # a new one, with a traceback of its own

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run the block while the engine serves. When it no longer does, the block is cancelled, and this raises why."""
        self.check()
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            self.check()
