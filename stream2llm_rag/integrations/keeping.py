"""What is costly to make of settings that may change: kept as long as they are the same. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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
