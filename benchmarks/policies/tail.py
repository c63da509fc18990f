"""Who the slowest requests are, and what they lacked when their final context came.

    python -m benchmarks.policies.tail FRONTEND POOL [--seed N] [--requests N]

Simulates the paper's crawls at 4 QPS and delay x10, and prints medians over parts of the requests, by TTFT.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.paper.limits import last_piece_s
from benchmarks.wording import table
from stream2llm_rag.simulation.frontends import make_frontend
from stream2llm_rag.simulation.grid import Generated, Machine, trim_s
from stream2llm_rag.simulation.records import RequestRecord, between
from stream2llm_rag.simulation.report import number
from stream2llm_rag.simulation.simulator import simulate
from stream2llm_rag.simulation.trace import Query, Trace

PARTS = {"all": (0.0, 1.0), "the middle tenth": (0.45, 0.55), "P95 to P99": (0.95, 0.99), "the slowest 1%": (0.99, 1.0)}


@dataclass(frozen=True, slots=True)
class Answered:
    """A request as it was answered, and as it came."""

    record: RequestRecord
    query: Query

    @property
    def num_missing(self) -> int:
        """Tokens before the last piece that had no KV when it came."""
        return max(0, self.record.num_prompt_tokens - self.query.chunks[-1].num_tokens - self.record.num_overlap)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frontend", help="such as density, fcfs or density+auto")
    parser.add_argument("pool", type=float, help="share of the KV cache of two H200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    machine, trace = Machine(pool=options.pool), Generated("crawler", 4, 10, options.requests).trace(options.seed)
    print(parts_table(answered(trace, machine, options.frontend), machine), end="")
    return 0


def answered(trace: Trace, machine: Machine, frontend: str) -> list[Answered]:
    """The requests without ramp-up and drain, the soonest first."""
    front = make_frontend(frontend)
    result = simulate(trace, front, machine.hardware.step_time, machine.shape(swaps=front.swaps))
    queries = {query.query_id: query for query in trace}
    measured = between(result.records, trim_s(trace))
    return [Answered(record, queries[record.query_id]) for record in sorted(measured, key=lambda record: record.ttft_s)]


def parts_table(requests: Sequence[Answered], machine: Machine) -> str:
    """A line for each part."""
    columns: dict[str, Callable[[Answered], float]] = {
        "TTFT s": lambda one: one.record.ttft_s,
        "last piece alone s": lambda one: last_piece_s(one.query, machine),
        "prompt tokens": lambda one: one.record.num_prompt_tokens,
        "missing before the last piece": lambda one: one.num_missing,
        "evictions": lambda one: one.record.num_evictions,
    }
    lines = []
    for name, (start, end) in PARTS.items():
        part = requests[int(len(requests) * start) : int(len(requests) * end)]
        lines.append((name, *(number(median(map(value, part))) for value in columns.values())))
    return table(("requests", *columns), lines)


if __name__ == "__main__":
    sys.exit(main())
