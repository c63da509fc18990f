"""What the query engine tells LlamaIndex's instrumentation, beside the events that it shares with others."""

from __future__ import annotations

import inspect
from typing import Any
from uuid import uuid4

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.span import active_span_id

dispatcher = get_dispatcher(__name__)


class ContextProgressEvent(BaseEvent):
    """Something happened to the context of a question. ``kind`` is an ``EventKind`` of ``stream2llm_rag.timeline``:
    ``delta`` (it was handed to the engine), ``computed``, ``evicted``, ``final_context``, ``first_token`` and so on.

    ``at_s`` is seconds since the question's arrival.
    """

    kind: str
    at_s: float
    tokens: int | None = None
    label: str = ""

    @classmethod
    def class_name(cls) -> str:
        """Class name."""
        return "ContextProgressEvent"


class AnswerEndEvent(BaseEvent):
    """The last token is there. LlamaIndex's own ``QueryEndEvent`` comes before the first where the answer streams."""

    query: str
    text: str
    measures: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        """Class name."""
        return "AnswerEndEvent"


class Span:
    """A span that ends when it is told to, not with a call: generation outlives the call that started it."""

    def __init__(self, instance: Any, name: str, **arguments: Any) -> None:
        self._instance = instance
        self._id = f"{type(instance).__name__}.{name}-{uuid4()}"
        parameters = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in arguments]
        self._arguments = inspect.Signature(parameters).bind(**arguments)

    def enter(self) -> None:
        """Begin, as a child of the span that is active."""
        dispatcher.span_enter(self._id, self._arguments, instance=self._instance, parent_id=active_span_id.get())

    def tell(self, event: BaseEvent) -> None:
        """Dispatch an event of this span."""
        event.span_id = self._id
        dispatcher.event(event)

    def exit(self, result: Any) -> None:
        """End with a result."""
        dispatcher.span_exit(self._id, self._arguments, instance=self._instance, result=result)

    def drop(self, error: BaseException) -> None:
        """End early."""
        dispatcher.span_drop(self._id, self._arguments, instance=self._instance, err=error)
