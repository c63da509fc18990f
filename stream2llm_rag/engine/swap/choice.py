"""Swap or recompute: the cost model of one engine core, or for tests a coin. Pure."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from stream2llm_rag.engine.cost_model import CostModel, Decision, Preemption
from stream2llm_rag.engine.costs import Costs, guess
from stream2llm_rag.errors import InvalidInputError

RANDOM = "random"
"""Not for users: tests reach every state with it."""


class CoinToss(CostModel):
    """Decides at random, and learns all the same."""

    _dice = random.Random(0)  # noqa: S311 - for tests, not for secrets

    def for_victim(self, num_tokens: int, context: int = 0) -> Decision:
        """Heads."""
        return self._toss(super().for_victim(num_tokens, context))

    def for_return(self, num_tokens: int, context: int = 0) -> Decision:
        """Or tails."""
        return self._toss(super().for_return(num_tokens, context))

    def _toss(self, decision: Decision) -> Decision:
        return replace(decision, swap=decision.num_tokens > 0 and self._dice.random() < 0.5)


def check_mode(mode: str) -> None:
    """Raise :class:`InvalidInputError` for a way to preempt that is none."""
    if mode not in {*Preemption, RANDOM}:
        raise InvalidInputError(f"there is no way to preempt called {mode!r}. Write one of {', '.join(Preemption)}.")


def make_cost(
    mode: str, block_size: int, block_bytes: int, stored: Costs | None = None, token_budget: float = math.inf
) -> CostModel:
    """The model that decides by ``mode``: it starts from what is stored, or else from a guess, and learns.

    ``block_size`` is in tokens, as is ``token_budget``, what one step computes at most.
    """
    costs, is_guess = stored or guess(block_bytes), stored is None
    if mode == RANDOM:
        return CoinToss(costs, block_size, token_budget=token_budget, is_guess=is_guess)
    return CostModel(costs, block_size, mode=Preemption(mode), token_budget=token_budget, is_guess=is_guess)
