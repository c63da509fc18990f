"""Whether streamed requests get the answers of stock vLLM, where arithmetic is not exact. Pure.

On a GPU a kernel rounds differently for another batch, so even stock vLLM does not always give itself the same tokens: a
near-tie between two of them can fall either way. How large such ties are, stock vLLM shows on its own, with steps of another
size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens, and for each position the log-probabilities of the likeliest ones, the chosen one among them."""

    token_ids: tuple[int, ...]
    logprobs: tuple[Mapping[int, float], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer first leaves the reference: ``gap`` is by how much the reference preferred its own token there.

    In nats; infinite where the other token was not even among the likeliest.
    """

    position: int
    gap: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of many answers beside their references.

    ``num_equal`` of ``num_answers`` are equal token for token; ``differences`` are those of the others. ``noise`` is the
    largest shift of a log-probability between the reference and stock vLLM with steps of another size; two tokens that lie no
    further apart than ``tie``, twice that, may change places by rounding alone. ``shift`` is the largest shift of the answers.
    """

    num_answers: int
    num_equal: int
    differences: tuple[Difference, ...]
    noise: float
    shift: float

    @property
    def tie(self) -> float:
        """The widest gap that rounding can close: each of the two tokens moves by up to ``noise``."""
        return 2 * self.noise

    @property
    def num_wrong(self) -> int:
        """Answers that differ by more than a near-tie."""
        return sum(difference.gap > self.tie for difference in self.differences)


def judge(answers: Sequence[Answer], references: Sequence[Answer], others: Sequence[Answer]) -> Verdict:
    """Compare each answer with its reference; ``others`` are stock vLLM's own for the same prompts, with other steps."""
    found = [first_difference(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    differences = tuple(difference for difference in found if difference is not None)
    return Verdict(
        num_answers=len(found),
        num_equal=len(found) - len(differences),
        differences=differences,
        noise=max((shift(other, reference) for other, reference in zip(others, references, strict=True)), default=0.0),
        shift=max((shift(answer, reference) for answer, reference in zip(answers, references, strict=True)), default=0.0),
    )


def first_difference(answer: Answer, reference: Answer) -> Difference | None:
    """The first position with another token; None where there is none. One that ends early differs at its end."""
    for position, token in enumerate(reference.token_ids):
        other = answer.token_ids[position] if position < len(answer.token_ids) else -1  # which is no token
        if other != token:
            likely = reference.logprobs[position]
            gap = likely[token] - likely[other] if other in likely else float("inf")
            return Difference(position, gap)
    return None if len(answer.token_ids) == len(reference.token_ids) else Difference(len(reference.token_ids), float("inf"))


def shift(answer: Answer, reference: Answer) -> float:
    """The largest difference of a log-probability that both have, while they have the same tokens before it."""
    largest = 0.0
    for position, (mine, theirs) in enumerate(zip(answer.logprobs, reference.logprobs, strict=False)):
        largest = max([largest, *(abs(mine[token] - theirs[token]) for token in mine.keys() & theirs.keys())])
        if answer.token_ids[position] != reference.token_ids[position]:
            break
    return largest
