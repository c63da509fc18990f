"""The streaming search beside diskannpy-rust on the same index, in one run: recall, reads, latency, stalls, and what streams
when.

Each data set is built once. Ours reads it past the page cache (``aio``) and from memory (``memory``); diskannpy-rust reads past
the page cache. Queries of all take turns, so that what else the machine does meets them alike. With ``--python-0.7`` (an
interpreter that has diskannpy 0.7 and numpy 1.25) the same is done over an index that diskannpy 0.7 built.

    python -m benchmarks.diskann --data 20000x64 20000x64:cosine 100000x128 documentationx256 --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.diskann_data import Array, Data, clustered, documentation
from stream2llm_rag.retrievers.diskann import DiskANNIndex, GraphParameters, Snapshot, Thresholds
from stream2llm_rag.retrievers.diskann.calibration import judge
from stream2llm_rag.retrievers.diskann.metrics import METRICS
from stream2llm_rag.retrievers.diskann.search import SearchParameters, Workspace
from stream2llm_rag.retrievers.diskann.stability import Emit, Gate
from stream2llm_rag.retrievers.diskann.state import NUM_CANDIDATES

TOP_K, BEAM_WIDTH = 10, 4
COMPLEXITIES = (10, 20, 40, 80, 160, 320)
SHARES = (0.1, 0.25, 0.5, 0.75)
TICK_S = 0.0002
Search = Callable[[Array, int], Sequence[int]]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": float(np.percentile(seconds, 50)) * 1e3, "p99_ms": float(np.percentile(seconds, 99)) * 1e3}


def recall(found: Sequence[Sequence[int]], exact: Array) -> float:
    return float(np.mean([len(set(ids) & set(true)) / len(true) for ids, true in zip(found, exact.tolist(), strict=True)]))


def in_turns(searches: dict[str, Search], queries: Array, complexity: int) -> dict[str, dict[str, Any]]:
    """Each search of each query, one behind the other: ids and latencies by the name of the search."""
    found: dict[str, dict[str, Any]] = {name: {"ids": [], "seconds": []} for name in searches}
    for query in queries:
        for name, search in searches.items():
            started = time.perf_counter()
            ids = search(query, complexity)
            found[name]["seconds"].append(time.perf_counter() - started)
            found[name]["ids"].append(list(ids))
    return found


@contextmanager
def quiet_output() -> Iterator[None]:
    """diskannpy-rust logs each search to the standard output."""
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def compare(data: Data, directory: Path, baseline: Any) -> list[dict[str, Any]]:
    """A row for each complexity: recall, equality, reads and latency of ours and of diskannpy-rust."""
    rows = []
    exact = data.exact(TOP_K)
    with DiskANNIndex.open(directory, reader="aio") as aio, DiskANNIndex.open(directory, reader="memory") as memory:
        stored = [memory._space.prepare(query).vector for query in data.queries]
        searches: dict[str, Search] = {
            "aio": lambda query, complexity: aio.nearest(query, top_k=TOP_K, complexity=complexity).ids,
            "memory": lambda query, complexity: memory.nearest(query, top_k=TOP_K, complexity=complexity).ids,
        }
        rust: dict[str, Search] = {
            "rust": lambda query, complexity: (
                baseline.search(memory._space.prepare(query).vector, TOP_K, complexity).identifiers
            )
        }
        for complexity in COMPLEXITIES:
            with quiet_output():
                found = in_turns({**searches, **rust}, data.queries, complexity)
                stats = baseline.batch_search(np.array(stored), TOP_K, complexity, 1).search_stats
            finals = [memory.nearest(query, top_k=TOP_K, complexity=complexity) for query in data.queries]
            row: dict[str, Any] = {"data": data.name, "metric": data.metric, "complexity": complexity}
            row |= {f"{name}_recall": recall(each["ids"], exact) for name, each in found.items()}
            row |= {name: percentiles(each["seconds"]) for name, each in found.items()}
            row["equal"] = float(np.mean([a == b for a, b in zip(found["aio"]["ids"], found["rust"]["ids"], strict=True)]))
            row["differences"] = differences(
                data, memory, complexity, [each["ids"] for each in (found["memory"], found["rust"])]
            )
            row["reads"] = float(np.mean([final.num_reads for final in finals]))
            row["rust_reads"] = float(stats["mean_ios"])
            rows.append(row)
            print(
                f"  L={complexity:<4} recall {row['aio_recall']:.4f} rust {row['rust_recall']:.4f}  equal {row['equal']:.1%}  "
                f"reads {row['reads']:.1f} rust {row['rust_reads']:.1f}  P50/P99 ms: aio {text(row['aio'])} "
                f"memory {text(row['memory'])} rust {text(row['rust'])}  {row['differences'] or ''}",
                flush=True,
            )
    return rows


def differences(data: Data, index: DiskANNIndex, complexity: int, found: Sequence[Sequence[list[int]]]) -> dict[str, int]:
    """Why lists of ours differ from diskannpy-rust's, query by query; how many there are of each kind.

    ``tie``: the same exact distances, place by place. ``left``: its list is that of the candidates that are left at the end of
    our search, ranked by exact distance, where ours ranks every node that was read. ``one more``: the same of a search of ours
    with one candidate more (it keeps a place for the node that it starts from), of which the L nearest are ranked.
    """
    kinds: Counter[str] = Counter()
    stored = index._space.store(data.vectors).astype(np.float64)
    for query, ours, theirs in zip(data.queries, *found, strict=True):
        if ours == theirs:
            continue
        squared = ((stored - index._space.prepare(query).vector) ** 2).sum(1)

        def is_theirs(rows: list[int], squared: Array = squared, theirs: list[int] = theirs) -> bool:
            ranked = sorted(rows, key=squared.__getitem__)[:TOP_K]
            return bool(np.allclose(squared[ranked], squared[theirs], rtol=1e-6))

        explained = {
            "tie": is_theirs(ours),
            "left": is_theirs(candidates_left(index, query, complexity)),
            "one more": is_theirs(candidates_left(index, query, complexity + 1)[:complexity]),
        }
        kinds[next((kind for kind, holds in explained.items() if holds), "other")] += 1
    return dict(kinds)


def candidates_left(index: DiskANNIndex, query: Array, complexity: int) -> list[int]:
    """Row numbers of the candidates, at most ``complexity``, with which a search ends."""
    search = index._begin(query, SearchParameters(TOP_K, complexity, BEAM_WIDTH))
    workspace = Workspace(index._open_lane(), index.num_points)
    state = search._begin(workspace)
    workspace.lane.advance(state, 2**62)
    workspace.lane.close()
    return [int(row) for row in state.candidate_ids[: state.counters[NUM_CANDIDATES]]]


def text(latency: dict[str, float]) -> str:
    return f"{latency['p50_ms']:.2f}/{latency['p99_ms']:.2f}"


def streamed(data: Data, directory: Path) -> list[dict[str, Any]]:
    """What the gate lets through: share of the final list by share of the reads, and how much of it stays."""
    rows = []
    half = len(data.queries) // 2
    with DiskANNIndex.open(directory, reader="memory") as index:
        for complexity in (80, 320):
            index.calibrate(data.queries[:half], top_k=TOP_K, complexities=[complexity])
            fitted = index.thresholds(top_k=TOP_K, complexity=complexity)
            traces = [hop_by_hop(index, query, complexity) for query in data.queries[half:]]
            ways: tuple[tuple[str, Emit, Thresholds], ...] = (
                ("stable", "stable", Thresholds()),
                ("calibrated", "stable", fitted),
                ("eager", "eager", Thresholds()),
            )
            present = [np.mean([share_of(trace, share, lambda s: s.ids) for trace in traces]) for share in SHARES]
            print(
                f"  L={complexity:<4} {'in the top k':>13}: "
                + "  ".join(f"{p:.0%} at {s:.0%}" for p, s in zip(present, SHARES, strict=True))
            )
            for name, emit, thresholds in ways:
                shown = [np.mean([shown_at(trace, share, thresholds, emit) for trace in traces]) for share in SHARES]
                precision = judge(traces, thresholds).precision if emit == "stable" else None
                rows.append(
                    {
                        "data": data.name,
                        "complexity": complexity,
                        "emit": name,
                        "present": [float(p) for p in present],
                        "shown": [float(p) for p in shown],
                        "precision": precision,
                        "thresholds": [thresholds.slack, thresholds.age, thresholds.progress],
                    }
                )
                stays = "" if precision is None else f"  {precision:.1%} of what was shown stayed"
                figures = "  ".join(f"{p:.0%} at {s:.0%}" for p, s in zip(shown, SHARES, strict=True))
                print(f"  L={complexity:<4} {name:>13}: {figures}{stays}", flush=True)
    return rows


def hop_by_hop(index: DiskANNIndex, query: Array, complexity: int) -> list[Snapshot]:
    return index.trace(query, top_k=TOP_K, complexity=complexity)


def share_of(trace: Sequence[Snapshot], share: float, ids_of: Callable[[Snapshot], Sequence[int]]) -> float:
    final = set(trace[-1].ids)
    before = [snapshot for snapshot in trace if snapshot.num_reads <= share * trace[-1].num_reads]
    return len(set(ids_of(before[-1])) & final) / len(final) if before else 0.0


def shown_at(trace: Sequence[Snapshot], share: float, thresholds: Thresholds, emit: Emit) -> float:
    gate, final, shown = Gate(thresholds, emit), set(trace[-1].ids), ()
    for snapshot in trace[:-1]:
        if snapshot.num_reads > share * trace[-1].num_reads:
            break
        shown = gate.pass_on(snapshot) or shown
    return len(set(shown) & final) / len(final)


async def at_once(data: Data, directory: Path, baseline: Any) -> list[dict[str, Any]]:
    """1, 4 and 16 searches at once: searches a second, and by how much a ticker on the event loop comes late meanwhile."""
    rows = []
    idle = await stall(lambda: asyncio.sleep(0.5))
    hashing = await stall(hash_in_threads)
    print(f"  {os.cpu_count()} threads that only hash, without the GIL: loop late P99 {hashing['p99_ms']:.2f} ms", flush=True)
    for reader in ("aio", "memory", "rust"):
        for number in (1, 4, 16):
            row = {"reader": reader, "searches_at_once": number, **await load(data, directory, baseline, reader, number)}
            rows.append(row | {"idle_stall_p99_ms": idle["p99_ms"], "hashing_stall_p99_ms": hashing["p99_ms"]})
            print(
                f"  {reader:>6}, {number:>2} at once: {row['searches_per_s']:,.0f}/s, P50/P99 {text(row['latency'])} ms, "
                f"loop late P99 {row['stall']['p99_ms']:.2f} ms (idle {idle['p99_ms']:.2f})",
                flush=True,
            )
    return rows


async def load(data: Data, directory: Path, baseline: Any, reader: str, number: int) -> dict[str, Any]:
    seconds: list[float] = []
    pool = ThreadPoolExecutor(number)
    kind: Any = "memory" if reader == "rust" else reader
    with DiskANNIndex.open(directory, reader=kind) as index:

        async def ours(query: Array) -> None:
            async for _ in index.search(query, top_k=TOP_K, complexity=80):
                pass

        async def rust(query: Array) -> None:
            vector = index._space.prepare(query).vector
            await asyncio.get_running_loop().run_in_executor(pool, baseline.search, vector, TOP_K, 80)

        async def work(queries: Iterator[Array]) -> None:
            for query in queries:
                started = time.perf_counter()
                await (rust if reader == "rust" else ours)(query)
                seconds.append(time.perf_counter() - started)

        async def all_of_it() -> None:
            waiting = iter(data.queries)
            await asyncio.gather(*(work(waiting) for _ in range(number)))

        with quiet_output():
            started = time.perf_counter()
            late = await stall(all_of_it)
            elapsed = time.perf_counter() - started
    pool.shutdown()
    return {"searches_per_s": len(data.queries) / elapsed, "latency": percentiles(seconds), "stall": late}


async def hash_in_threads() -> None:
    """As many threads as processors that compute and never hold the GIL: what a loop's thread meets on this machine anyhow."""
    block = bytes(200_000_000)
    await asyncio.gather(*(asyncio.to_thread(hashlib.sha256, block) for _ in range(os.cpu_count() or 1)))


async def stall(job: Callable[[], Any]) -> dict[str, float]:
    """By how much a ticker on this loop comes late while ``job`` runs."""
    lateness: list[float] = []
    done = threading.Event()

    async def tick() -> None:
        while not done.is_set():
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            lateness.append(time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    await job()
    done.set()
    await ticking
    return percentiles(lateness)


_SCRIPT_07 = """
import sys, time, json, numpy as np, diskannpy
folder, vectors, queries = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
n, d = vectors.shape
diskannpy.build_disk_index(vectors, "l2", folder, complexity=100, graph_degree=64, build_memory_maximum=4.0, num_threads=0,
    search_memory_maximum=n * max(1, min(128, d // 2)) / 2**30 * 1.02, pq_disk_bytes=0, vector_dtype=np.float32)
index = diskannpy.StaticDiskIndex(folder, num_threads=2, num_nodes_to_cache=0)  # with 1 its searches hang
out = {}
for complexity in json.loads(sys.argv[4]):
    ids, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        found = index.search(query, 10, complexity, 4)
        seconds.append(time.perf_counter() - started)
        ids.append([int(i) for i in found.identifiers])
    out[complexity] = {"ids": ids, "seconds": seconds}
json.dump(out, open(sys.argv[5], "w"))
"""


def compare_07(data: Data, python: str, folder: Path) -> list[dict[str, Any]]:
    """Over an index that diskannpy 0.7 built: what it finds and what ours finds."""
    np.save(folder / "vectors.npy", data.vectors)
    np.save(folder / "queries.npy", data.queries)
    files = [
        str(folder),
        str(folder / "vectors.npy"),
        str(folder / "queries.npy"),
        json.dumps(COMPLEXITIES),
        str(folder / "out.json"),
    ]
    subprocess.run([python, "-c", _SCRIPT_07, *files], check=True, stdout=subprocess.DEVNULL)
    theirs = json.loads((folder / "out.json").read_text())
    rows = []
    with DiskANNIndex.open(folder, reader="aio") as index:

        def search(query: Array, complexity: int) -> Sequence[int]:
            return index.nearest(query, top_k=TOP_K, complexity=complexity).ids

        for complexity in COMPLEXITIES:
            ours = in_turns({"aio": search}, data.queries, complexity)["aio"]
            other = theirs[str(complexity)]
            equal = float(np.mean([a == b for a, b in zip(ours["ids"], other["ids"], strict=True)]))
            latencies = percentiles(ours["seconds"]), percentiles(other["seconds"])
            rows.append({"data": data.name, "complexity": complexity, "equal": equal, "aio": latencies[0], "cpp": latencies[1]})
            print(
                f"  L={complexity:<4} equal to diskannpy 0.7: {equal:.1%}  "
                f"P50/P99 ms: aio {text(latencies[0])} 0.7 {text(latencies[1])}"
            )
    return rows


def make(name: str, num_queries: int) -> Data:
    name, _, metric = name.partition(":")
    if metric and metric not in METRICS:
        raise SystemExit(f"The metric behind the colon is one of {', '.join(METRICS)}, but {metric!r} came.")
    if name.startswith("documentation"):
        return documentation(int(name.partition("x")[2] or 256), num_queries)
    num_points, _, num_dims = name.partition("x")
    return clustered(int(num_points), int(num_dims), num_queries, metric or "l2")


def run(data: Data, folder: Path, python_07: str | None) -> dict[str, Any]:
    import diskannpy

    print(f"{data.name}, {data.metric}, {len(data.queries)} queries", flush=True)
    directory = folder / "index"
    started = time.perf_counter()
    DiskANNIndex.build(data.vectors, directory, metric=data.metric, graph=GraphParameters())  # type: ignore[arg-type]
    found: dict[str, Any] = {"data": data.name, "metric": data.metric, "build_s": time.perf_counter() - started}
    print(f"  built in {found['build_s']:.1f} s, checked", flush=True)
    with quiet_output():
        baseline = diskannpy.StaticDiskIndex(str(directory), num_threads=0, beam_width=BEAM_WIDTH)
    found["compared"] = compare(data, directory, baseline)
    found["streamed"] = streamed(data, directory)
    found["at_once"] = asyncio.run(at_once(data, directory, baseline))
    if python_07 and data.metric == "l2":
        other = folder / "cpp"
        other.mkdir()
        found["diskannpy_0_7"] = compare_07(data, python_07, other)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", default=["20000x64", "100000x128"], help="POINTSxDIMS or POINTSxDIMS:METRIC, or documentationxDIMS"
    )
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--python-0.7", dest="python_07", help="an interpreter with diskannpy 0.7 and numpy 1.25")
    parser.add_argument("--folder", type=Path, help="where indexes are built, on the disk to be measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}")
    results = []
    for name in arguments.data:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            data = make(name, arguments.queries)
            results.append(run(data, Path(folder), arguments.python_07))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
