"""Cells of a benchmark that takes longer than one run may: each is measured round by round, over as many runs as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream2llm_rag.bench.ledger import Entry, append_entry, done_rounds, read_entries
from stream2llm_rag.bench.replay import replay
from stream2llm_rag.bench.rounds import RoundSettings
from stream2llm_rag.bench.script import write_scripts
from stream2llm_rag.bench.targets import Target
from stream2llm_rag.bench.ways import Way, round_order
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.trace import Trace
from stream2llm_rag.simulation.workloads import WORKLOADS

_DRAIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting: ``qps`` queries of a workload a second, gaps times ``delay``, a KV cache of ``num_blocks`` blocks.

    A round has ``requests_per_round`` queries; those of its first and last ``trim_s`` seconds do not count for percentiles.
    """

    name: str
    workload: str
    qps: float
    delay: float
    num_blocks: int
    token_budget: int
    max_model_len: int
    requests_per_round: int
    num_rounds: int
    trim_s: float

    def trace(self, index: int) -> Trace:
        """The trace of round ``index``, the same for every way. Prompts that the model cannot hold are left out."""
        trace = WORKLOADS[self.workload](self.requests_per_round, self.qps, self.delay, index)
        return tuple(query for query in trace if query.num_prompt_tokens + query.num_output_tokens <= self.max_model_len)

    def path(self, folder: Path) -> Path:
        """Where its rounds are kept."""
        return folder / f"{self.name}.jsonl"


def pending_rounds(cell: Cell, ways: Sequence[Way], entries: Sequence[Entry]) -> list[tuple[int, Way]]:
    """What is still to be measured, in order."""
    done = done_rounds(entries)
    return [(index, way) for index, way in round_order(ways, cell.num_rounds) if (index, way.name) not in done]


def seconds_needed(trace: Trace, settings: RoundSettings) -> float:
    """How long a round may take: its arrivals and retrievals, and then until the last has its answer or the engine stalls."""
    return max(query.final_s for query in trace) + max(_DRAIN_S, settings.stall_limit_s)


def ways_for(
    cell: Cell, ways: Sequence[Way], entries: Sequence[Entry], settings: RoundSettings, *, left_s: float, start_s: float
) -> list[Way]:
    """The ways whose rounds come next and fit into ``left_s`` seconds, where each engine takes ``start_s`` to start.

    So no engine is started that would have no round in this run. At least one way, while any round is pending.
    """
    chosen: list[Way] = []
    for index, way in pending_rounds(cell, ways, entries):
        is_new = all((other.policy, other.hints) != (way.policy, way.hints) for other in chosen)
        left_s -= seconds_needed(cell.trace(index), settings) + (start_s if is_new else 0.0)
        if chosen and left_s < 0:
            break
        if way not in chosen:
            chosen.append(way)
    return [way for way in ways if way in chosen]


async def run_cell(
    cell: Cell,
    targets: Sequence[Target],
    folder: Path,
    settings: RoundSettings,
    *,
    ends_at: float,
    machine: Mapping[str, str],
    on_round: Callable[[Entry], None] = lambda entry: None,
) -> bool:
    """Measure rounds of ``cell`` until all of ``targets`` are there, or the next cannot end by ``ends_at``.

    ``ends_at`` is a time of :func:`time.monotonic`. Each round is written as soon as it is done. Returns whether all are there.
    A round that would overrun is cut off.
    """
    by_way = {target.way: target for target in targets}
    for index, way in pending_rounds(cell, list(by_way), read_entries(cell.path(folder))):
        trace = cell.trace(index)
        left_s = ends_at - time.monotonic()
        if left_s < seconds_needed(trace, settings):
            return False
        scripts = write_scripts(trace, settings.vocabulary, salt=f"round {index}")
        done = await replay(by_way[way], scripts, stall_limit_s=settings.stall_limit_s, time_limit_s=left_s)
        entry = Entry.of(index, done, machine)
        append_entry(cell.path(folder), entry)
        on_round(entry)
    return True


def find_cell(name: str, cells: Sequence[Cell]) -> Cell:
    """The cell called ``name``. Raises :class:`InvalidInputError` where there is none."""
    for cell in cells:
        if cell.name == name:
            return cell
    raise InvalidInputError(f"there is no cell {name!r}. Write one of {', '.join(cell.name for cell in cells)}.")
