"""What is costly to make of settings that may change: kept as long as they are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.prompt.chat import ChatEncoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """``value``, and the settings that it was made of."""

    settings: Any
    value: T


def kept(before: Kept[T] | None, settings: Any, make: Callable[[], T]) -> Kept[T]:
    """``before``, where it was made of the same settings, else what ``make`` makes of these.

    Models of pydantic take new values for their fields, and copies of them (``model_copy``) keep the private attributes of the
    original: what those hold has to be looked at anew.
    """
    return before if before is not None and before.settings == settings else Kept(settings, make())


def kept_encoder(before: Kept[ChatEncoder] | None, engine: BackgroundEngine, chat_template: str | None) -> Kept[ChatEncoder]:
    """The encoder of chats for what ``engine`` runs."""
    return kept(before, (engine, chat_template), lambda: ChatEncoder(engine.engine.tokenizer, chat_template=chat_template))
