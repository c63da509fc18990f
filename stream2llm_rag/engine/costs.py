"""Seconds of steps and of copies: linear in what is in them, with the coefficients of one model on one machine. Pure.

A step in which each request computes ``n`` tokens behind ``k`` others takes::

    step_s + sum(token_s * n  +  attention_s * n * (k + n / 2)  +  kv_read_s * k)

A copy of any number of blocks is one operation: it takes ``operation_s``, and ``block_s`` for each block in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, Self, TypeAlias

from stream2llm_rag.errors import InvalidInputError

StepItems: TypeAlias = Iterable[tuple[int, int]]
"""What a step computes: of each request its new tokens, and the tokens before them that have KV."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step by what is in it. Raises :class:`InvalidInputError` for a coefficient below 0 or not finite."""

    step_s: float
    token_s: float
    attention_s: float = 0.0
    kv_read_s: float = 0.0

    def __post_init__(self) -> None:
        _check_coefficients(self)

    def __call__(self, items: StepItems) -> float:
        """Seconds of a step that computes ``items``."""
        return _product(self, step_features(items))


@dataclass(frozen=True, slots=True)
class CopyCost:
    """Seconds of a copy in one direction. Raises as :class:`StepCost`."""

    operation_s: float
    block_s: float

    def __post_init__(self) -> None:
        _check_coefficients(self)

    def __call__(self, num_blocks: int) -> float:
        """Seconds to copy ``num_blocks`` at once; none for no block."""
        return _product(self, (1.0, num_blocks)) if num_blocks > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """The coefficients of one model on one machine."""

    step: StepCost
    swap_out: CopyCost
    swap_in: CopyCost

    def to_dict(self) -> dict[str, dict[str, float]]:
        """What :meth:`from_dict` reads, as values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Raises :class:`InvalidInputError` for anything but what :meth:`to_dict` gives."""
        kinds = {"step": StepCost, "swap_out": CopyCost, "swap_in": CopyCost}
        parts = _exactly(stored, list(kinds))
        return cls(**{name: kind(**_exactly(parts[name], [f.name for f in fields(kind)])) for name, kind in kinds.items()})


def guess(block_bytes: int) -> Costs:
    """What to begin with where nothing was measured: copies at 8 GB/s, and tokens cheaper than any real model's.

    So nothing is copied out before steps have shown what a token really takes; a few of them do.
    """
    copy = CopyCost(operation_s=1e-4, block_s=block_bytes / 8e9)
    return Costs(StepCost(step_s=1e-3, token_s=1e-6, attention_s=1e-12, kv_read_s=1e-10), copy, copy)


def step_features(items: StepItems) -> tuple[float, float, float, float]:
    """What the coefficients of a :class:`StepCost` are multiplied by.

    These are 1, new tokens, pairs of a new token and one that it looks at, and tokens whose KV is read.
    """
    num_tokens, num_pairs, num_read = 0, 0.0, 0
    for num_new, context in items:
        num_tokens += num_new
        num_pairs += num_new * (context + num_new / 2)
        num_read += context
    return 1.0, num_tokens, num_pairs, num_read


def _product(cost: StepCost | CopyCost, features: Iterable[float]) -> float:
    return math.fsum(coefficient * feature for coefficient, feature in zip(astuple(cost), features, strict=True))


def _check_coefficients(cost: StepCost | CopyCost) -> None:
    for name, value in asdict(cost).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InvalidInputError(f"{name} is {value!r}. Write seconds, 0 or more.")


def _exactly(stored: object, names: list[str]) -> Mapping[str, Any]:
    if not isinstance(stored, Mapping) or stored.keys() != set(names):
        found = ", ".join(map(str, stored)) if isinstance(stored, Mapping) else repr(stored)
        raise InvalidInputError(f"costs have {found}. Write an object with {', '.join(names)}.")
    return stored
