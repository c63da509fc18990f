"""What callers pass, checked before it goes to the engine core, where a mistake would cost more than an error. Pure."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from stream2llm_rag.errors import InvalidInputError

_MAX_REMAINING = 2**31 - 1  # as of a served engine


def checked_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """``token_ids`` as plain integers. Raises :class:`InvalidInputError` for any that are not in [0, ``vocab_size``)."""
    try:
        ids = np.asarray(token_ids)
    except ValueError as error:  # nested, and of unequal lengths
        raise InvalidInputError(f"token ids must be a flat sequence of integers: {error}") from error
    if ids.size == 0:
        return []
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InvalidInputError(f"token ids must be a flat sequence of integers, got {ids.dtype} of shape {ids.shape}.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise InvalidInputError(
            f"token ids must be in [0, {vocab_size}), got values from {ids.min()} to {ids.max()}. "
            "Were they made by another model's tokenizer?"
        )
    found: list[int] = ids.tolist()
    return found


def checked_hint(num_remaining: int | None) -> int | None:
    """``num_remaining`` as a plain integer.

    The engine core drops the whole operation where it is none, and no message to a served engine holds more than 31 bits.
    """
    if num_remaining is None:
        return None
    try:
        number = operator.index(num_remaining)
    except TypeError:
        number = -1
    if isinstance(num_remaining, bool) or not 0 <= number <= _MAX_REMAINING:
        raise InvalidInputError(f"num_remaining is {num_remaining!r}. Write how many pieces are to come, 0 or more, or None.")
    return number
