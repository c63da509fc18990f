"""Searches from the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from stream2llm_rag.errors import IndexFormatError, LifecycleError
from stream2llm_rag.retrievers.diskann import DiskANNIndex, Snapshot, checks
from stream2llm_rag.retrievers.diskann.readers import SlowedLane

from .conftest import Built


class Held:
    """Lets a search do one hop for each step that is allowed, and notes who waits."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)
        self.closed = threading.Event()

    def sleep(self, _: float) -> None:
        self.waiting.release()
        self.steps.acquire(timeout=60)


@pytest.fixture
def held(built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DiskANNIndex, Held]]:
    held = Held()
    index = DiskANNIndex.open(built.directory, hop_delay_s=1.0, max_searches=2)
    monkeypatch.setattr(index, "_open_lane", None)
    monkeypatch.setattr(index._workers, "_open_lane", lambda: SlowedLane(index._reader.open_lane(), 1.0, held.sleep))
    yield index, held
    held.steps.release(10_000)
    index.close()


async def collect(stream: Any) -> list[Snapshot]:
    return [snapshot async for snapshot in stream]


@pytest.mark.parametrize("reader", ["memory", "threads"])
async def test_the_last_snapshot_is_the_whole_result(built: Built, reader: Any) -> None:
    with DiskANNIndex.open(built.directory, reader=reader) as index:
        for query in built.queries[:10]:
            snapshots = await collect(index.search(query, complexity=60))
            assert snapshots[-1] == index.nearest(query, complexity=60)
            assert [snapshot.is_final for snapshot in snapshots].count(True) == 1
            assert all(a.num_reads < b.num_reads for a, b in pairwise(snapshots))


async def test_many_searches_at_once_do_not_mix(built: Built) -> None:
    with DiskANNIndex.open(built.directory, reader="threads", max_searches=3) as index:
        found = await asyncio.gather(*(collect(index.search(query, complexity=40)) for query in built.queries))
        assert [each[-1] for each in found] == [index.nearest(query, complexity=40) for query in built.queries]


async def test_snapshots_come_while_the_search_goes_on(held: tuple[DiskANNIndex, Held], built: Built) -> None:
    index, gate = held
    stream = index.search(built.queries[0], top_k=3, complexity=30)
    gate.steps.release(1)
    first = await anext(stream)
    assert not first.is_final
    gate.steps.release(1000)
    assert (await collect(stream))[-1] == index.nearest(built.queries[0], top_k=3, complexity=30)


async def test_a_late_reader_gets_the_latest_snapshot(held: tuple[DiskANNIndex, Held], built: Built) -> None:
    index, gate = held
    stream = index.search(built.queries[0], top_k=3, complexity=30)
    gate.steps.release(1000)
    await asyncio.wrap_future(stream._future)
    assert [snapshot.is_final for snapshot in await collect(stream)] == [True]


async def test_a_search_that_is_closed_ends_between_two_hops_and_frees_its_place(
    held: tuple[DiskANNIndex, Held], built: Built
) -> None:
    index, gate = held
    first, second, third = (index.search(query) for query in built.queries[:3])  # two may run at once
    for _ in range(2):
        assert await asyncio.to_thread(gate.waiting.acquire, timeout=60)
    assert not third._future.running()
    await third.aclose()
    assert third._future.cancelled()
    closing = asyncio.create_task(first.aclose())
    while not first._search.is_stopped:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    gate.steps.release(1000)
    await closing
    assert await collect(first) == []
    assert (await collect(second))[-1].is_final
    await asyncio.wrap_future(second._future)
    assert not index._workers._searches


async def test_closing_the_index_ends_its_searches(held: tuple[DiskANNIndex, Held], built: Built) -> None:
    index, gate = held
    streams = [index.search(query) for query in built.queries[:4]]
    for _ in range(2):
        assert await asyncio.to_thread(gate.waiting.acquire, timeout=60)
    closing = asyncio.create_task(asyncio.to_thread(index.close))
    while not all(search.is_stopped for search in list(index._workers._searches)):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    gate.steps.release(2)
    await closing
    for stream in streams:
        with pytest.raises(LifecycleError, match="closed"):
            await collect(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_the_file_is_closed_only_after_the_last_search_in_a_thread_of_its_caller(
    held: tuple[DiskANNIndex, Held], built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, gate = held
    events: list[str] = []

    def search() -> None:
        with pytest.raises(LifecycleError, match="closed during the search"):
            index.nearest(built.queries[0])
        events.append("search ended")

    close_reader = index._reader.close
    monkeypatch.setattr(index._reader, "close", lambda: (gate.closed.set(), close_reader()))
    searching = asyncio.create_task(asyncio.to_thread(search))
    assert await asyncio.to_thread(gate.waiting.acquire, timeout=60)
    closing = asyncio.create_task(asyncio.to_thread(index.close))
    while not all(search.is_stopped for search in list(index._workers._searches)):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    assert not await asyncio.to_thread(gate.closed.wait, 0.1)  # it waits for the search
    gate.steps.release(1)
    await asyncio.gather(searching, closing)
    assert events == ["search ended"]
    assert gate.closed.is_set()


async def test_damage_that_a_search_meets_is_raised_for_its_reader(copied: Built) -> None:
    with DiskANNIndex.open(copied.directory, reader="threads") as index:
        geometry = index._layout.geometry
        path = copied.directory / "ann_disk.index"
        content = bytearray(path.read_bytes())
        for sector in range(4096, len(content), 4096):
            for node in range(geometry.nodes_per_sector):
                at = sector + node * geometry.node_bytes + geometry.vector_bytes
                content[at : at + 4] = b"\xff\xff\xff\xff"
        path.write_bytes(content)
        for _ in range(3):  # and again: what failed left nothing behind
            with pytest.raises(IndexFormatError, match="more neighbours than a node can have"):
                await collect(index.search(copied.queries[0]))
        with pytest.raises(IndexFormatError, match=r"node 0 .*more neighbours"):
            checks.verify_nodes(index._layout)


async def test_a_loop_that_has_ended_does_not_trouble_the_search(built: Built) -> None:
    with DiskANNIndex.open(built.directory) as index:

        def leave() -> Any:
            async def begin() -> Any:
                return index.search(built.queries[0])

            return asyncio.run(begin())

        stream = await asyncio.to_thread(leave)
        await asyncio.to_thread(stream._future.result)


async def test_closing_does_not_come_between_a_look_and_the_start_of_a_search(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DiskANNIndex.open(built.directory) as index:
        workers, is_kept_out = index._workers, []
        submit = workers._threads.submit

        def close() -> None:
            is_kept_out.append(not workers._turn.acquire(blocking=False))
            if not is_kept_out[0]:
                workers._turn.release()

        def noting(*job: Any) -> Any:
            closer = threading.Thread(target=close)
            closer.start()
            closer.join()
            return submit(*job)

        monkeypatch.setattr(workers._threads, "submit", noting)
        assert (await collect(index.search(built.queries[0])))[-1].is_final
        assert is_kept_out == [True]
