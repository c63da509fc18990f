"""Whether a victim's KV is computed again or copied out and back in. Pure.

Computing ``n`` lost tokens again behind ``k`` others adds their part to the steps that run anyway (:mod:`costs`), and the base
of a step only for each that they fill alone: it would not run without them. Copies have coefficients of their own for either
direction. All of these are fitted to measurements (:mod:`calibrate`), and follow what steps and copies really take.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from enum import StrEnum

from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost, StepItems, step_features
from stream2llm_rag.engine.least_squares import RecursiveLeastSquares
from stream2llm_rag.errors import InvalidInputError

DEFAULT_MARGIN = 1.25

_STEP_HALF_LIFE = 30.0  # observations
_COPY_HALF_LIFE = 30.0
_MAX_SURVIVING = 0.95  # of a victim: what all earlier ones kept need not be kept this time
# What a stored fit is worth at the start: as if it had predicted steps and copies like these exactly, each so often.
_NUM_ASSUMED = 4
_ASSUMED_ITEMS = [(num_tokens, context) for num_tokens in (16, 128, 1024, 8192) for context in (0, 512, 4096, 32768)]
_ASSUMED_BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Preemption(StrEnum):
    """What may become of a victim's KV: the cost model decides, always dropped, or always copied out."""

    AUTO = "auto"
    RECOMPUTE = "recompute"
    SWAP = "swap"


class Direction(StrEnum):
    """Of a copy: to host memory, or back."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to copy: out for a victim, in at its return. The two are estimates of ``num_tokens`` either way, in seconds."""

    swap: bool
    num_tokens: int
    swap_s: float
    recompute_s: float


class CostModel:
    """Decides for one engine, and learns from what its steps and copies take.

    ``costs`` is where it begins: a stored fit, or with ``is_guess`` one that the first observations may overthrow. A copy has
    to be ``margin`` times cheaper than computing again. ``block_size`` is in tokens, and so is ``token_budget``, what one step
    computes at most. Raises :class:`InvalidInputError` for a margin or a budget below 1.
    """

    def __init__(
        self,
        costs: Costs,
        block_size: int,
        *,
        mode: Preemption = Preemption.AUTO,
        margin: float = DEFAULT_MARGIN,
        token_budget: float = math.inf,
        is_guess: bool = False,
    ) -> None:
        if not 1 <= margin < math.inf:
            raise InvalidInputError(f"margin is {margin!r}. Write how many times cheaper a copy has to be, 1 or more.")
        if not token_budget >= 1:
            raise InvalidInputError(f"token_budget is {token_budget!r}. Write how many tokens a step computes, 1 or more.")
        self.mode = mode
        self._block_size = block_size
        self._margin = margin
        self._token_budget = token_budget
        self._step = RecursiveLeastSquares(astuple(costs.step), _STEP_HALF_LIFE)
        self._copy = {
            direction: RecursiveLeastSquares(astuple(cost), _COPY_HALF_LIFE)
            for direction, cost in ((Direction.OUT, costs.swap_out), (Direction.IN, costs.swap_in))
        }
        self._survival = Survival()
        if not is_guess:
            self._step.assume([step_features([item]) for item in _ASSUMED_ITEMS], _NUM_ASSUMED)
            for copy in self._copy.values():
                copy.assume([(1, num_blocks) for num_blocks in _ASSUMED_BLOCKS], _NUM_ASSUMED)

    @property
    def costs(self) -> Costs:
        """The coefficients as they stand."""
        copies = (CopyCost(*self._copy[direction].coefficients) for direction in (Direction.OUT, Direction.IN))
        return Costs(StepCost(*self._step.coefficients), *copies)

    def recompute_s(self, num_tokens: int, context: int = 0) -> float:
        """Seconds that computing ``num_tokens`` behind ``context`` others adds."""
        if num_tokens <= 0:
            return 0.0
        _, *rest = step_features([(num_tokens, context)])
        return self._step.predict((num_tokens // self._token_budget, *rest))

    def swap_out_s(self, num_blocks: int) -> float:
        """Seconds to copy so many blocks to host memory."""
        return self._copy_s(Direction.OUT, num_blocks)

    def swap_in_s(self, num_blocks: int) -> float:
        """Seconds to copy so many blocks back."""
        return self._copy_s(Direction.IN, num_blocks)

    def for_victim(self, num_tokens: int, context: int = 0) -> Decision:
        """Whether to copy out the KV of ``num_tokens`` tokens behind ``context`` others, which their request is to give up.

        Those that will probably still be in the prefix cache when it comes back are left out: they cost nothing either way.
        What survives is the front, as vLLM's pool reuses a request's last blocks first.
        """
        num_surviving = self._whole_blocks(self._survival.share * num_tokens)
        return self._decide(num_tokens - num_surviving, context + num_surviving, is_out=True)

    def for_return(self, num_tokens: int, context: int = 0) -> Decision:
        """Whether to copy in the KV of ``num_tokens`` tokens, which host memory holds, behind ``context`` others on the device.

        ``context`` includes what the prefix cache really gave. What the copy out took is spent.
        """
        return self._decide(num_tokens, context, is_out=False)

    def saw_step(self, items: StepItems, seconds: float) -> None:
        """Learn what a step took that computed ``items``, decodes among them as one token each."""
        self._step.add(step_features(items), seconds)

    def saw_copy(self, direction: Direction, num_blocks: int, seconds: float) -> None:
        """Learn what a copy took."""
        if num_blocks > 0:
            self._copy[direction].add((1.0, num_blocks), seconds)

    def saw_return(self, num_tokens: int, num_hit: int) -> None:
        """Learn that of ``num_tokens`` which a victim had given up the prefix cache still had ``num_hit`` at its return."""
        self._survival.add(num_tokens, num_hit)

    def _decide(self, num_tokens: int, context: int, *, is_out: bool) -> Decision:
        num_blocks = -(-num_tokens // self._block_size)
        swap_s = self.swap_in_s(num_blocks) + (self.swap_out_s(num_blocks) if is_out else 0.0)
        recompute_s = self.recompute_s(num_tokens, context)
        pays = swap_s * self._margin < recompute_s
        swap = num_tokens > 0 and (self.mode is Preemption.SWAP or (self.mode is Preemption.AUTO and pays))
        return Decision(swap, num_tokens, swap_s, recompute_s)

    def _copy_s(self, direction: Direction, num_blocks: int) -> float:
        return self._copy[direction].predict((1.0, num_blocks)) if num_blocks > 0 else 0.0

    def _whole_blocks(self, num_tokens: float) -> int:
        return int(num_tokens) // self._block_size * self._block_size


class Survival:
    """``share`` of a victim's tokens that the prefix cache still has when it comes back: 0 until returns show otherwise."""

    def __init__(self, decay: float = 0.98, num_assumed: float = 4096.0) -> None:
        self._decay = decay
        self._num_given_up = num_assumed
        self._num_hit = 0.0

    def add(self, num_tokens: int, num_hit: int) -> None:
        """Learn what of one victim survived."""
        if num_tokens > 0:
            self._num_given_up = self._num_given_up * self._decay + num_tokens
            self._num_hit = self._num_hit * self._decay + min(max(num_hit, 0), num_tokens)

    @property
    def share(self) -> float:
        """Between 0 and 0.95."""
        return min(_MAX_SURVIVING, self._num_hit / self._num_given_up)
