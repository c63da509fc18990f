"""The ways to serve a workload that the benchmarks compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from stream2llm_rag.engine.policy import DEFAULT_POLICY, POLICIES, make_policy
from stream2llm_rag.errors import InvalidInputError


class WayKind(StrEnum):
    """Who streams, if anybody."""

    NON_STREAMING = "ns"
    NATIVE = "native"
    STREAMING = "streaming"


@dataclass(frozen=True, slots=True)
class Way:
    """Non-streaming: stock vLLM gets the whole prompt when retrieval has ended. Native: vLLM's own streaming input.

    Streaming is ours, under ``policy``; with ``hints`` the scheduler is told how many chunks are still to come.
    """

    kind: WayKind
    policy: str | None = None
    hints: bool = False

    def __post_init__(self) -> None:
        if (self.policy is not None) != (self.kind is WayKind.STREAMING):
            raise InvalidInputError(f"policy={self.policy!r} does not go with {self.kind}. Only our own streaming has one.")
        if self.hints and self.kind is not WayKind.STREAMING:
            raise InvalidInputError(f"hints do not go with {self.kind}. Only our own streaming takes them.")
        if self.policy is not None:
            make_policy(self.policy)

    @property
    def name(self) -> str:
        """As tables and files show it, the simulation calls it, and :func:`parse_way` reads it."""
        return f"{self.policy or self.kind}{_HINTS if self.hints else ''}"


_HINTS = "+hints"
NON_STREAMING = Way(WayKind.NON_STREAMING)
NATIVE = Way(WayKind.NATIVE)
DEFAULT = Way(WayKind.STREAMING, DEFAULT_POLICY)


def parse_way(name: str) -> Way:
    """``ns``, ``native``, or a policy's name, with ``+hints`` behind it or not. :class:`InvalidInputError` for any other."""
    policy = name.removesuffix(_HINTS)
    if policy in (WayKind.NON_STREAMING, WayKind.NATIVE):
        return Way(WayKind(policy), hints=name != policy)
    return Way(WayKind.STREAMING, policy, hints=name != policy)


def every_way() -> tuple[Way, ...]:
    """All of them, each policy without hints: those that all else is compared with come first."""
    others = sorted(set(POLICIES) - {DEFAULT_POLICY})
    return (NON_STREAMING, NATIVE, DEFAULT, *(Way(WayKind.STREAMING, policy) for policy in others))


def round_order(ways: Sequence[Way], num_rounds: int) -> list[tuple[int, Way]]:
    """Which way runs when: every way once a round, in turn forwards and backwards.

    So a machine that grows slower, or faster, does so for all of them alike.
    """
    return [(index, way) for index in range(num_rounds) for way in (ways if index % 2 == 0 else ways[::-1])]
