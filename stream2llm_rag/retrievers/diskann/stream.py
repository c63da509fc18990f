"""Searches off the event loop: a bounded number of threads search, and each search hands over its latest snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from stream2llm_rag.errors import LifecycleError
from stream2llm_rag.retrievers.diskann.reading import Lane
from stream2llm_rag.retrievers.diskann.search import Search, Workspace
from stream2llm_rag.retrievers.diskann.stability import Snapshot


class Workers:
    """Runs searches in at most ``max_searches`` threads; more of them wait for their turn. Each gives a snapshot after every
    ``hops_per_snapshot`` hops.

    Workspaces are made when they are first needed, and used again: at most one for each search that runs at once.
    """

    def __init__(self, open_lane: Callable[[], Lane], num_points: int, max_searches: int, hops_per_snapshot: int = 1) -> None:
        self._open_lane = open_lane
        self._num_points = num_points
        self._hops_per_snapshot = hops_per_snapshot
        self._threads = ThreadPoolExecutor(max_searches, "diskann-search")
        self._idle: list[Workspace] = []
        self._searches: set[Search] = set()
        self._turn = threading.Condition()  # notified when a search ends
        self._is_closed = False

    def submit(self, search: Search, take: Callable[[Snapshot], None]) -> Future[None]:
        """Search in a thread, and call ``take`` in it with each snapshot."""
        with self._turn:  # a thread that closes comes before, or after
            self._require_open()
            return self._threads.submit(self._run, search, take)

    def run(self, search: Search) -> Snapshot:
        """Search in the calling thread, to the end. LifecycleError where the index is closed meanwhile."""
        with self._under_way(search) as workspace:
            found = search.run(workspace)
        if found is None:
            raise LifecycleError("The index was closed during the search. Close it after its last search.")
        return found

    def trace(self, search: Search) -> list[Snapshot]:
        """Search in the calling thread, and return a snapshot of each hop."""
        with self._under_way(search) as workspace:
            return list(search.snapshots(workspace))

    def close(self) -> None:
        """Stop every search between two hops, wait for that, and free what they held."""
        with self._turn:
            self._is_closed = True
            for search in self._searches:
                search.stop()
        self._threads.shutdown(cancel_futures=True)
        with self._turn:  # those in threads of their callers still read
            self._turn.wait_for(lambda: not self._searches)
        for workspace in self._idle:
            workspace.lane.close()
        self._idle.clear()

    def _run(self, search: Search, take: Callable[[Snapshot], None]) -> None:
        with self._under_way(search) as workspace:
            for snapshot in search.snapshots(workspace, self._hops_per_snapshot):
                take(snapshot)

    @contextlib.contextmanager
    def _under_way(self, search: Search) -> Iterator[Workspace]:
        workspace = self._take(search)
        try:
            yield workspace
        except BaseException:
            workspace.lane.close()  # it may still have reads under way
            self._end(search)
            raise
        self._give_back(workspace)
        self._end(search)

    def _take(self, search: Search) -> Workspace:
        with self._turn:
            self._require_open()
            self._searches.add(search)
            workspace = self._idle.pop() if self._idle else None
        try:
            return workspace or Workspace(self._open_lane(), self._num_points)
        except BaseException:
            self._end(search)
            raise

    def _give_back(self, workspace: Workspace) -> None:
        with self._turn:
            if not self._is_closed:
                self._idle.append(workspace)
                return
        workspace.lane.close()

    def _end(self, search: Search) -> None:
        with self._turn:
            self._searches.discard(search)
            self._turn.notify_all()

    def _require_open(self) -> None:
        if self._is_closed:
            raise LifecycleError("This index is closed. Search inside its `with` block, or open it again.")


class SearchStream:
    """The snapshots of one search, for one reader on the event loop.

    A reader that is late gets the latest snapshot: each holds all that was found. The search starts at once and is as fast as
    the disk, whoever reads. Raises IndexFormatError where it meets damage, LifecycleError where the index is closed meanwhile.
    """

    def __init__(self, workers: Workers, search: Search) -> None:
        self._search = search
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._latest: Snapshot | None = None
        self._is_closed = False
        self._future = workers.submit(search, self._publish)
        self._future.add_done_callback(self._wake)

    def __aiter__(self) -> SearchStream:
        return self

    async def __anext__(self) -> Snapshot:
        while not self._is_closed:
            self._arrived.clear()
            is_done = self._future.done()  # asked first: what came before the end is not lost
            snapshot, self._latest = self._latest, None
            if snapshot is not None:
                self._is_closed = snapshot.is_final
                return snapshot
            if is_done:
                self._is_closed = True
                self._raise_failure()
            else:
                await self._arrived.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the search. When this returns, it reads and computes nothing any more."""
        self._is_closed = True
        self._search.stop()
        if not self._future.cancel():
            with contextlib.suppress(Exception):
                await asyncio.wrap_future(self._future)

    def _publish(self, snapshot: Snapshot) -> None:
        self._latest = snapshot
        self._wake()

    def _wake(self, _: object = None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it every reader
            self._loop.call_soon_threadsafe(self._arrived.set)

    def _raise_failure(self) -> None:
        try:
            self._future.result()
        except CancelledError as error:
            raise LifecycleError("The index was closed before this search began. Close it after its last search.") from error
        raise LifecycleError("The index was closed during the search. Close it after its last search.")
