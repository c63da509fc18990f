"""The paper's experiment at the size of this machine: what is planned before engines start, and how it is carried out."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stream2llm_rag.bench.calibration import Calibration, calibrate
from stream2llm_rag.bench.hosts import open_targets
from stream2llm_rag.bench.replay import Round
from stream2llm_rag.bench.rounds import RoundSettings, interleave, warm_up
from stream2llm_rag.bench.scaling import Scale, Speed, same_load, scale_trace
from stream2llm_rag.bench.ways import DEFAULT, NATIVE, NON_STREAMING, Way
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.grid import TOKEN_BUDGETS
from stream2llm_rag.simulation.step_time import load_hardware
from stream2llm_rag.simulation.trace import Trace
from stream2llm_rag.simulation.workloads import WORKLOADS

MADE_FOR = "h200x2"
"""The machine of the paper's experiments, whose load this machine gets in proportion."""
_BLOCK_SIZE = 32  # the smallest that vLLM has on a CPU
_VOCABULARY = range(5, 2000)  # of the tiny model, without its special tokens
_DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """``num_requests`` of a workload, in ``num_rounds`` traces, at ``qps`` for the paper's machine, gaps times ``delay``.

    ``pool`` is a share of that machine's KV cache; prompts have a share ``tokens`` of their tokens. The steps' token budget and
    the KV cache shrink with the prompts, and time is scaled so that the engine is as busy.
    """

    workload: str = "crawler"
    qps: float = 4.0
    delay: float = 1.0
    num_requests: int = 450
    num_rounds: int = 3
    pool: float = 0.06
    tokens: float = 1 / 8
    seed: int = 0
    ways: tuple[Way, ...] = (NON_STREAMING, NATIVE, DEFAULT)
    prefix_caching: bool = False
    stall_limit_s: float = 10.0

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            raise InvalidInputError(f"there is no workload {self.workload!r}. Write one of {', '.join(WORKLOADS)}.")
        if not 1 <= self.num_rounds <= self.num_requests:
            raise InvalidInputError(f"{self.num_requests} requests in {self.num_rounds} rounds. Write one or more for each.")
        if self.pool <= 0 or self.stall_limit_s <= 0 or not self.ways:
            raise InvalidInputError(
                f"pool is {self.pool}, stall_limit_s {self.stall_limit_s}, with {len(self.ways)} ways. Write more than none."
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the settings alone. ``traces`` are not scaled yet."""

    settings: LocalSettings
    traces: tuple[Trace, ...]
    token_budget: int
    max_model_len: int
    num_blocks: int

    @property
    def engine_args(self) -> dict[str, Any]:
        """vLLM's arguments for every engine, with the tiny model in float32, in which equal prompts give equal tokens."""
        return {
            "dtype": "float32",
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "block_size": _BLOCK_SIZE,
            "num_gpu_blocks_override": self.num_blocks,
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": self.token_budget,
            "max_num_seqs": self.token_budget,
            "enable_prefix_caching": self.settings.prefix_caching,
        }

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        return _BLOCK_SIZE

    def scaled(self, scale: Scale) -> list[Trace]:
        """The traces for this machine."""
        return [scale_trace(trace, scale) for trace in self.traces]


def make_plan(settings: LocalSettings) -> Plan:
    """Draw the traces, and size the engine for them. The KV cache holds the longest prompt at least."""
    per_round = math.ceil(settings.num_requests / settings.num_rounds)
    make = WORKLOADS[settings.workload]
    traces = tuple(make(per_round, settings.qps, settings.delay, settings.seed + index) for index in range(settings.num_rounds))
    scaled = [query for trace in traces for query in scale_trace(trace, Scale(settings.tokens, 1.0))]
    longest = max(max(query.prompt_lengths) + query.num_output_tokens for query in scaled)
    max_model_len = _BLOCK_SIZE * math.ceil((longest + 1) / _BLOCK_SIZE)
    pool = settings.pool * load_hardware(MADE_FOR).num_kv_tokens * settings.tokens
    return Plan(
        settings,
        traces,
        token_budget=max(_BLOCK_SIZE, round(TOKEN_BUDGETS[settings.workload] * settings.tokens)),
        max_model_len=max_model_len,
        num_blocks=1 + max(round(pool / _BLOCK_SIZE), max_model_len // _BLOCK_SIZE),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """``traces`` as replayed; ``rounds`` in the order in which they ran, each with the index of its trace."""

    plan: Plan
    calibration: Calibration
    scale: Scale
    traces: tuple[Trace, ...]
    rounds: tuple[tuple[int, Round], ...]

    def of(self, way: Way) -> list[Round]:
        """The rounds of one way, by trace."""
        return [done for _, done in sorted(((i, d) for i, d in self.rounds if d.way == way), key=lambda pair: pair[0])]


class Listener:
    """Is told how a measurement goes on. This one ignores it."""

    def during(self, words: str) -> AbstractContextManager[Any]:
        """For a block that takes its time over what ``words`` say."""
        return nullcontext()

    def scaled(self, plan: Plan, calibration: Calibration, scale: Scale) -> None:
        """The machine has been timed, and the workload scaled to it."""

    def round_done(self, index: int, done: Round) -> None:
        """A round of trace ``index`` has ended."""


async def measure(plan: Plan, model: Path, listener: Listener) -> Measured:
    """Start the engines, time this machine, and replay the rounds in turn.

    A round that is not done half a minute after its last context came is cut off.
    """
    settings = plan.settings
    limits = RoundSettings(_VOCABULARY, settings.stall_limit_s)
    async with AsyncExitStack() as stack:
        with listener.during(f"Starting engines for {', '.join(way.name for way in settings.ways)}"):
            targets = await stack.enter_async_context(open_targets(model, settings.ways, plan.engine_args))
        with listener.during("Warming up, and timing steps of many sizes"):
            await warm_up(targets, 4 * plan.token_budget, limits)
            calibration = await calibrate(targets[0], plan.max_model_len - 1, limits)
        scale = scale_to(plan, calibration)
        listener.scaled(plan, calibration, scale)
        traces = plan.scaled(scale)
        limits = replace(limits, time_limit_s=max(query.final_s for trace in traces for query in trace) + _DRAIN_S)
        rounds = []
        with listener.during("Replaying"):
            async for index, done in interleave(targets, traces, limits):
                rounds.append((index, done))
                listener.round_done(index, done)
    return Measured(plan, calibration, scale, tuple(traces), tuple(rounds))


def scale_to(plan: Plan, calibration: Calibration) -> Scale:
    """The scale at which this machine is as busy as the paper's would be."""
    made_for = Speed(load_hardware(MADE_FOR).step_time, TOKEN_BUDGETS[plan.settings.workload])
    machine = Speed(calibration.fit.step_time, plan.token_budget)
    queries = tuple(query for trace in plan.traces for query in trace)
    return same_load(queries, plan.settings.tokens, made_for, machine)
