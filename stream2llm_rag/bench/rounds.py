"""Rounds of several ways, interleaved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from stream2llm_rag.bench.replay import Round, replay
from stream2llm_rag.bench.script import write_scripts
from stream2llm_rag.bench.targets import Target
from stream2llm_rag.bench.ways import round_order
from stream2llm_rag.simulation.trace import Chunk, Query, Trace


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """``vocabulary`` has the token ids that prompts are made of; the limits are those of :func:`replay`."""

    vocabulary: range
    stall_limit_s: float
    time_limit_s: float | None = None


async def interleave(
    targets: Sequence[Target], traces: Sequence[Trace], settings: RoundSettings
) -> AsyncIterator[tuple[int, Round]]:
    """Replay each trace against every target before the next trace begins; yield its index with each round.

    Only one engine works at a time. The order turns round with every trace (:func:`round_order`).
    """
    by_way = {target.way: target for target in targets}
    for index, way in round_order(list(by_way), len(traces)):
        scripts = write_scripts(traces[index], settings.vocabulary, salt=f"round {index}")
        yield (
            index,
            await replay(by_way[way], scripts, stall_limit_s=settings.stall_limit_s, time_limit_s=settings.time_limit_s),
        )


async def warm_up(targets: Sequence[Target], num_tokens: int, settings: RoundSettings) -> None:
    """Serve two prompts of ``num_tokens`` each way, so that no round is the first to touch code or memory."""
    pieces = (Chunk(0.0, num_tokens // 2), Chunk(0.0, num_tokens - num_tokens // 2))
    trace = tuple(Query(f"warm-up-{index}", 0.0, pieces) for index in range(2))
    for target in targets:
        await replay(target, write_scripts(trace, settings.vocabulary), stall_limit_s=settings.stall_limit_s)
