"""An index on disk: built, opened, searched, calibrated, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import IndexFormatError, InvalidInputError, LifecycleError
from stream2llm_rag.retrievers.diskann import calibration as calibrating
from stream2llm_rag.retrievers.diskann import checks
from stream2llm_rag.retrievers.diskann.build import build_index
from stream2llm_rag.retrievers.diskann.builder import BuildProgress, GraphParameters
from stream2llm_rag.retrievers.diskann.calibration import Calibration
from stream2llm_rag.retrievers.diskann.layout import DEFAULT_PREFIX
from stream2llm_rag.retrievers.diskann.metrics import Metric
from stream2llm_rag.retrievers.diskann.opening import Contents, read_contents
from stream2llm_rag.retrievers.diskann.readers import ReaderKind, SlowedLane, open_reader
from stream2llm_rag.retrievers.diskann.reading import Lane, Reader
from stream2llm_rag.retrievers.diskann.search import Search, SearchParameters
from stream2llm_rag.retrievers.diskann.stability import Snapshot, Thresholds
from stream2llm_rag.retrievers.diskann.stream import SearchStream, Workers

_MAX_SEARCHES = 16  # of those that mostly wait for the disk
_SEARCHES_PER_PROCESSOR = 2


class DiskANNIndex:
    """A DiskANN index on disk, open for searches. Made by :meth:`open` or :meth:`build`; a context manager.

    ::

        DiskANNIndex.build(vectors, "index", documents=documents, metric="cosine")
        with DiskANNIndex.open("index") as index:
            async for snapshot in index.search(query, top_k=10, complexity=100):
                ...  # the nearest so far; the last one is final

    In memory are the quantised vectors (``num_chunks`` bytes a point) and, for each search that has run beside others, 4
    bytes a point. Safe to use from many threads and tasks at once.
    """

    def __init__(
        self, contents: Contents, reader: Reader, *, max_searches: int | None = None, hop_delay_s: float = 0.0
    ) -> None:
        self.directory = contents.directory
        self._layout = contents.layout
        self._space = contents.space
        self._labels = contents.labels
        self._store = contents.store
        self._manifest = contents.manifest
        self._reader = reader
        self._hop_delay_s = hop_delay_s
        self._calibration = Calibration.read(contents.directory / calibrating.FILE_NAME)
        max_searches = max_searches or _num_searches(reader, hop_delay_s)
        hops_per_snapshot = 1 if hop_delay_s else reader.hops_per_snapshot
        self._workers = Workers(self._open_lane, self.num_points, max_searches, hops_per_snapshot)
        self._is_closed = False

    @classmethod
    def build(
        cls,
        vectors: Any,
        directory: str | os.PathLike[str],
        *,
        documents: Sequence[Document] | None = None,
        ids: Sequence[int] | None = None,
        metric: Metric = "l2",
        graph: GraphParameters | None = None,
        extras: Callable[[Path], None] | None = None,
        overwrite: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[BuildProgress], None] | None = None,
    ) -> None:
        """Build an index of ``vectors`` (n rows of numbers, stored as float32) in the folder ``directory``.

        ``documents``, one for each row, are stored beside them. ``ids`` are what searches return, whole numbers, each once;
        without them the numbers of the rows. ``extras`` is called with the folder, to write further files into it.

        The index is built in a folder beside ``directory`` and moved there when it is whole and checked: an interrupted build
        leaves nothing that looks like an index, and the next one starts anew. The graph is built in a process of its own, which
        is ended after ``timeout_s`` seconds. ``on_progress`` is called as each stage begins. ``overwrite`` lets the index take
        the place of what is in ``directory``.

        Blocks for as long as it takes; from a coroutine call it by ``asyncio.to_thread``. Raises InvalidInputError for what
        cannot be indexed, IndexBuildError where the disk is full, the time is over or the builder fails, MissingExtraError
        without ``diskannpy-rust``.
        """
        build_index(
            vectors,
            Path(directory),
            documents=documents,
            ids=ids,
            metric=metric,
            graph=graph,
            extras=extras,
            overwrite=overwrite,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        prefix: str = DEFAULT_PREFIX,
        metric: Metric | None = None,
        dtype: Any = None,
        reader: ReaderKind = "auto",
        max_searches: int | None = None,
        hop_delay_s: float = 0.0,
    ) -> Self:
        """Open an index of ours, or one that diskannpy 0.7, diskannpy-rust 0.49 or DiskANN's tools of those versions built.

        Of one that is not ours the files begin with ``prefix``; ``metric`` and ``dtype`` (float32, int8 or uint8) are asked for
        where no metadata file says them. ``reader`` brings the nodes: ``"aio"`` (Linux's asynchronous reads, past the page
        cache), ``"threads"``, ``"memory"`` (the mapped file), or ``"auto"``: ``memory`` where the file is in the page cache,
        else the first that works here. At most ``max_searches`` run at once, further ones wait; by itself one a processor
        from memory, two by asynchronous reads (more would keep the event loop from a processor), else 16. ``hop_delay_s`` slows
        each hop down: what searches over a slower store look like.

        Does one search, so that the first of yours does not wait for the compiler, and fails here where the files do not work.
        Raises IndexFormatError for files that are missing, damaged, or of another kind.
        """
        if not 0 <= hop_delay_s < 3600:
            raise InvalidInputError(f"hop_delay_s is from 0 to below 3600, but {hop_delay_s!r} came.")
        if max_searches is not None and not (isinstance(max_searches, int) and max_searches >= 1):
            raise InvalidInputError(f"max_searches is a whole number of at least 1, but {max_searches!r} came.")
        contents = read_contents(Path(directory), prefix, metric, dtype)
        opened = open_reader(contents.layout.path, contents.layout.geometry, reader)
        try:
            index = cls(contents, opened, max_searches=max_searches, hop_delay_s=hop_delay_s)
        except BaseException:
            opened.close()
            raise
        try:
            index._warm_up()
        except BaseException:
            index.close()
            raise
        return index

    @property
    def num_points(self) -> int:
        """Vectors in the index."""
        return self._layout.geometry.num_points

    @property
    def num_dims(self) -> int:
        """Dimensions of a query."""
        return self._space.num_dims

    @property
    def metric(self) -> Metric:
        """What is near."""
        return self._space.metric

    @property
    def reader(self) -> str:
        """How nodes are read: ``aio``, ``threads`` or ``memory``."""
        return self._reader.kind

    @property
    def has_documents(self) -> bool:
        """Whether documents were stored beside the vectors."""
        return self._store is not None

    @property
    def calibration(self) -> Calibration:
        """The thresholds that were fitted to this index."""
        return self._calibration

    def search(self, query: Any, *, top_k: int = 10, complexity: int = 100, beam_width: int = 4) -> SearchStream:
        """Search for the ``top_k`` nearest of ``query``, and stream what is found; needs a running event loop.

        ``complexity`` candidates are kept (L in the DiskANN paper): more find better neighbours and read more nodes,
        ``beam_width`` of them at once. Call ``aclose()`` on the stream to end the search early. Raises InvalidInputError for
        what cannot be searched for, LifecycleError where the index is closed.
        """
        return SearchStream(self._workers, self._begin(query, SearchParameters(top_k, complexity, beam_width)))

    def nearest(self, query: Any, *, top_k: int = 10, complexity: int = 100, beam_width: int = 4) -> Snapshot:
        """The final snapshot of :meth:`search`, found in the calling thread."""
        return self._workers.run(self._begin(query, SearchParameters(top_k, complexity, beam_width)))

    def trace(self, query: Any, *, top_k: int = 10, complexity: int = 100, beam_width: int = 4) -> list[Snapshot]:
        """A snapshot of each hop of :meth:`search`, found in the calling thread."""
        return self._workers.trace(self._begin(query, SearchParameters(top_k, complexity, beam_width)))

    def documents(self, ids: Sequence[int]) -> tuple[Document, ...]:
        """The documents of ``ids``, in that order; reads them from the disk. LifecycleError where there are none at all."""
        if self._store is None:
            raise LifecycleError("This index was built without documents. Write: DiskANNIndex.build(..., documents=documents)")
        return tuple(self._store.read(ids))

    def score(self, distance: float) -> float:
        """A distance as a score, higher is better: the cosine, the inner product, or the negated squared distance."""
        return self._space.score(distance)

    def thresholds(self, *, top_k: int = 10, complexity: int = 100, beam_width: int = 4) -> Thresholds:
        """When a document of such a search is stable: as calibrated, or the defaults."""
        return self._calibration.thresholds_for(SearchParameters(top_k, complexity, beam_width))

    def calibrate(
        self,
        queries: Any,
        *,
        top_k: int = 10,
        complexities: Sequence[int] = (100,),
        beam_width: int = 4,
        precision: float = calibrating.DEFAULT_PRECISION,
    ) -> Calibration:
        """Fit the stability gate to this index with ``queries`` like those to come, at least 20, and store it beside the index.

        Of the documents that the gate shows early, a share of ``precision`` is to be in the final list. The thresholds are
        fitted to every other query and judged by the rest. Returns the table with the new rows. IndexBuildError where they
        cannot be stored; they hold until the index is closed all the same.
        """
        rows = np.asarray(queries)
        if rows.ndim != 2 or len(rows) < calibrating.MIN_QUERIES:
            raise InvalidInputError(f"Calibration takes {calibrating.MIN_QUERIES} queries or more, but {rows.shape} came.")
        if not 0 < precision <= 1:
            raise InvalidInputError(f"precision is a share above 0, at most 1, but {precision!r} came.")
        fitted = []
        for complexity in complexities:
            traces = [self.trace(query, top_k=top_k, complexity=complexity, beam_width=beam_width) for query in rows]
            fitted.append(calibrating.fit_row(SearchParameters(top_k, complexity, beam_width), traces, precision))
        self._calibration = self._calibration.with_rows(fitted)
        self._calibration.write(self.directory / calibrating.FILE_NAME)
        return self._calibration

    def verify(self) -> None:
        """Read every file in full: IndexFormatError where one was changed, or holds what cannot be.

        Of an index that is not ours there are no digests, so that only the latter can be seen.
        """
        self._require_open()
        if self._manifest is not None:
            checks.verify_digests(self.directory, self._manifest)
        checks.verify_nodes(self._layout)
        if self._store is not None and self._store.count() != self.num_points:
            raise IndexFormatError(f"{self.directory}: {self.num_points} vectors, {self._store.count()} documents.")

    def close(self) -> None:
        """End every search between two hops, and free what the index holds. Streams that had not ended raise LifecycleError."""
        if self._is_closed:
            return
        self._is_closed = True
        self._workers.close()
        self._reader.close()

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, query: Any, parameters: SearchParameters) -> Search:
        self._require_open()
        parameters.check(self.num_points)
        return Search(self._layout, self._space, self._space.prepare(query), parameters, self._labels)

    def _open_lane(self) -> Lane:
        lane = self._reader.open_lane()
        return SlowedLane(lane, self._hop_delay_s) if self._hop_delay_s else lane

    def _warm_up(self) -> None:
        """Search as ``search`` and as ``nearest`` do, once, in a lane of its own that nothing slows down."""
        query = self._space.prepare(np.ones(self.num_dims, np.float32))
        workers = Workers(self._reader.open_lane, self.num_points, 1)
        try:
            workers.trace(Search(self._layout, self._space, query, SearchParameters(1, 2, 1)))
        finally:
            workers.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise LifecycleError("This index is closed. Open it again with DiskANNIndex.open.")


def _num_searches(reader: Reader, hop_delay_s: float) -> int:
    """How many searches may run at once. Of those that compute more than they wait, more only contend for the processors, and
    with the event loop: a loop's thread that is woken has to wait for its turn among all that are ready to run.
    """
    num_processors = os.cpu_count() or 1
    if hop_delay_s or reader.kind == "threads":
        return _MAX_SEARCHES
    return min(_MAX_SEARCHES, num_processors if reader.kind == "memory" else _SEARCHES_PER_PROCESSOR * num_processors)
