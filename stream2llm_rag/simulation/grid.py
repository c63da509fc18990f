"""Simulations by their settings, one or many, in as many processes as wanted.

What is simulated is values that travel between processes; the result is a :class:`~stream2llm_rag.simulation.runs.Run`, which
is small. Nothing here imports vLLM before a simulation starts.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from threading import Thread
from typing import TYPE_CHECKING, TypeAlias

from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.errors import InvalidInputError, MissingExtraError, Stream2LLMError
from stream2llm_rag.simulation.model import KV_BYTES_PER_TOKEN
from stream2llm_rag.simulation.records import between
from stream2llm_rag.simulation.runs import Run
from stream2llm_rag.simulation.step_time import Hardware, load_hardware
from stream2llm_rag.simulation.trace import Query, Trace
from stream2llm_rag.simulation.workloads import WORKLOADS

if TYPE_CHECKING:
    from stream2llm_rag.simulation.building import CoreShape

STOCK_FRONTENDS = ("ns", "native", "vllm-s")
"""Those on stock vLLM's scheduler."""
FRONTENDS = (*STOCK_FRONTENDS, *POLICIES)
"""All that is compared by default: the usual way, vLLM's own streaming, the paper's vLLM-S, and ours with each policy."""

TOKEN_BUDGETS = {"crawler": 2048, "anns": 8192}
"""Tokens of a step in the paper's experiments."""

_BLOCK_SIZE = 16
_MAX_TRIMMED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Generated:
    """One of the paper's workloads: ``num_requests`` of it, ``qps`` a second, its gaps stretched by ``delay``."""

    workload: str
    qps: float
    delay: float = 1.0
    num_requests: int = 2000
    num_output_tokens: int = 1

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            raise InvalidInputError(f"there is no workload {self.workload!r}. Write one of {', '.join(WORKLOADS)}.")

    @property
    def label(self) -> str:
        """What it is but for the rate, in a few words."""
        return self.workload + (f", delay x{self.delay:g}" if self.delay != 1 else "")

    def trace(self, seed: int) -> Trace:
        """The queries that a seed gives."""
        make = WORKLOADS[self.workload]
        return make(self.num_requests, self.qps, self.delay, seed, num_output_tokens=self.num_output_tokens)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace that is there already; every seed gives the same. ``qps`` is its rate, where it is one that was asked for."""

    label: str
    queries: Trace = field(repr=False)
    qps: float | None = None

    def trace(self, seed: int) -> Trace:
        """The queries."""
        return self.queries


Load: TypeAlias = Generated | Recorded


@dataclass(frozen=True, slots=True)
class Machine:
    """What the load comes to: a share ``pool`` of the KV cache that ``hardware`` has, and how its engine is set.

    ``depth`` is how many steps may be in flight: 1, or 2 for asynchronous scheduling. ``host_gib`` GiB of host memory hold KV
    of front ends that swap.
    """

    hardware: Hardware = field(default_factory=lambda: load_hardware("h200x2"))
    pool: float = 1.0
    token_budget: int = 2048
    prefix_caching: bool = False
    depth: int = 1
    host_gib: float = 256.0

    def __post_init__(self) -> None:
        if not 0 <= self.host_gib < float("inf"):
            raise InvalidInputError(f"host_gib is {self.host_gib!r}. Write GiB of host memory, 0 or more.")
        if not 0 < self.pool <= 100:
            raise InvalidInputError(
                f"pool is {self.pool!r}. Write a share of the KV cache of {self.hardware.name}, such as 0.5."
            )

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        extras = [*(["prefix caching"] if self.prefix_caching else []), *(["asynchronous"] if self.depth > 1 else [])]
        return ", ".join([f"pool {self.pool:g} of {self.hardware.name}", *extras])

    def shape(self, *, swaps: bool = False) -> CoreShape:
        """The same for the simulator."""
        from stream2llm_rag.simulation.building import CoreShape

        return CoreShape(
            num_blocks=round(self.pool * self.hardware.num_kv_tokens / _BLOCK_SIZE),
            num_host_blocks=int(self.host_gib * 2**30 / KV_BYTES_PER_TOKEN / _BLOCK_SIZE) if swaps else None,
            token_budget=self.token_budget,
            max_num_seqs=min(1024, self.token_budget),
            block_size=_BLOCK_SIZE,
            prefix_caching=self.prefix_caching,
            depth=self.depth,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """One simulation: a load on a machine, brought there by a front end."""

    load: Load
    machine: Machine
    frontend: str
    seed: int = 0

    @property
    def series(self) -> str:
        """What front ends, seeds and rates have in common."""
        return f"{self.load.label}, {self.machine.label}"


def trim_s(trace: Sequence[Query]) -> float:
    """Seconds of ramp-up and of drain: a mean retrieval each, but at most a fifth of the time in which queries arrive.

    Only after a retrieval's time are there as many streams as there will be, and as many fewer before the last one ends.
    """
    arrivals_s = [query.arrival_s for query in trace]
    span_s = max(arrivals_s) - min(arrivals_s)
    return min(fmean(query.chunks[-1].after_s for query in trace), _MAX_TRIMMED_SHARE * span_s)


def run(setting: Setting) -> Run:
    """Simulate. Raises :class:`InvalidInputError` for what cannot be, such as a front end that nobody knows."""
    try:
        from stream2llm_rag.simulation.frontends import make_frontend
        from stream2llm_rag.simulation.simulator import simulate
    except ImportError as error:
        raise MissingExtraError("vLLM", "vllm") from error
    frontend = make_frontend(setting.frontend)
    trace = setting.load.trace(setting.seed)
    trimmed_s = trim_s(trace)
    shape = setting.machine.shape(swaps=frontend.swaps)
    result = simulate(trace, frontend, setting.machine.hardware.step_time, shape, trim_s=trimmed_s)
    own = (setting.series, setting.load.qps, setting.frontend, setting.seed)
    return Run.of(*own, between(result.records, trimmed_s), result.summary)


def run_all(settings: Sequence[Setting], num_processes: int = 1) -> Iterator[tuple[int, Run]]:
    """Simulate each, in any order, yielding the index of each as it ends. With one process, in this one.

    The first error ends it, with a note that names the setting: what is under way is waited for, the rest dropped. So does
    closing the iterator.
    """
    if num_processes <= 1 or len(settings) <= 1:
        yield from ((index, _run_named(setting)) for index, setting in enumerate(settings))
        return
    spawned = multiprocessing.get_context("spawn")  # vLLM and torch do not survive a fork
    with ProcessPoolExecutor(min(num_processes, len(settings)), spawned, initializer=_end_with_parent) as pool:
        futures = {pool.submit(_run_named, setting): index for index, setting in enumerate(settings)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, as it holds both ends of the pipe that brings it."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_named(setting: Setting) -> Run:
    try:
        with _no_garbage_collection():
            return run(setting)
    except Stream2LLMError as error:
        error.add_note(f"In {setting.series}, {setting.load.qps} QPS, {setting.frontend}, seed {setting.seed}")
        raise


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A pool of 98,000 blocks is walked by each full collection, a fifth of a run's time; what is in cycles goes afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.collect()
