"""How fast this machine is: the steps of a real engine, timed by its own core, for prompts of many lengths."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from stream2llm_rag.bench.replay import replay
from stream2llm_rag.bench.rounds import RoundSettings
from stream2llm_rag.bench.script import write_scripts
from stream2llm_rag.bench.steps import Step
from stream2llm_rag.bench.targets import Target
from stream2llm_rag.simulation.step_time import Fit, fit
from stream2llm_rag.simulation.trace import Chunk, Query

_NUM_REPETITIONS = 3
_NUM_TOGETHER = 12


@dataclass(frozen=True, slots=True)
class Calibration:
    """``fit`` is the step time; ``overhead_s`` what a request takes beyond its steps, on the way to the core and back."""

    fit: Fit
    overhead_s: float
    num_steps: int


async def calibrate(target: Target, max_tokens: int, settings: RoundSettings) -> Calibration:
    """Measure with ``target``, which serves whole prompts: alone of up to ``max_tokens``, and short ones together.

    The steps are those that the core reports, not the time that a caller sees: it is they that a simulation strings together.
    """
    steps: list[Step] = []
    overheads_s: list[float] = []
    for repetition in range(_NUM_REPETITIONS):
        for name, lengths in _batches(max_tokens):
            trace = tuple(
                Query(f"calibration-{repetition}-{name}-{index}", 0.0, (Chunk(0.0, length),))
                for index, length in enumerate(lengths)
            )
            found = await replay(target, write_scripts(trace, settings.vocabulary), stall_limit_s=settings.stall_limit_s)
            steps += found.steps
            if len(trace) == 1:
                overheads_s.append(found.records[0].ttft_s - sum(step.seconds for step in found.steps))
    measurements = [(step.items, step.seconds) for step in steps]
    return Calibration(fit(measurements), max(0.0, median(overheads_s)), len(steps))


def _batches(max_tokens: int) -> list[tuple[str, list[int]]]:
    """What is computed at once: a single prompt of each length, and then many short ones."""
    lengths = [max_tokens]
    while lengths[-1] > 16:
        lengths.append(lengths[-1] // 2)
    together = [("together-" + str(length), [length] * _NUM_TOGETHER) for length in (8, 40, 200) if length < max_tokens]
    return [(f"alone-{length}", [length]) for length in lengths] + together
