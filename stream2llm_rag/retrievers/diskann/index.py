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
from stream2llm_rag.retrievers.diskann.build import (
    DOCUMENTS_FILE,
    LABELS_FILE,
    BuildProgress,
    GraphParameters,
    build_index,
)
from stream2llm_rag.retrievers.diskann.calibration import Calibration
from stream2llm_rag.retrievers.diskann.layout import DEFAULT_PREFIX, Array, Layout, read_layout, read_metadata
from stream2llm_rag.retrievers.diskann.manifest import Manifest
from stream2llm_rag.retrievers.diskann.metrics import METRICS, Metric, Space
from stream2llm_rag.retrievers.diskann.readers import Lane, Reader, ReaderKind, SlowedLane, open_reader
from stream2llm_rag.retrievers.diskann.search import Search, SearchParameters
from stream2llm_rag.retrievers.diskann.stability import Snapshot, Thresholds
from stream2llm_rag.retrievers.diskann.store import DocumentStore
from stream2llm_rag.retrievers.diskann.stream import SearchStream, Workers

_DEFAULT_MAX_SEARCHES = 16


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
        self,
        directory: Path,
        layout: Layout,
        space: Space,
        reader: Reader,
        *,
        manifest: Manifest | None = None,
        max_searches: int = _DEFAULT_MAX_SEARCHES,
        hop_delay_s: float = 0.0,
    ) -> None:
        self.directory = directory
        self._layout = layout
        self._space = space
        self._reader = reader
        self._manifest = manifest
        self._hop_delay_s = hop_delay_s
        self._labels = _read_labels(directory, manifest)
        self._store = DocumentStore(directory / DOCUMENTS_FILE) if manifest is not None and manifest.has_documents else None
        self._calibration = Calibration.read(directory / calibrating.FILE_NAME)
        if reader.kind == "memory" and not hop_delay_s:  # such a search never waits: more threads than processors only contend
            max_searches = min(max_searches, os.cpu_count() or 1)
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
        max_searches: int = _DEFAULT_MAX_SEARCHES,
        hop_delay_s: float = 0.0,
    ) -> Self:
        """Open an index of ours, or one that diskannpy 0.7, diskannpy-rust 0.49 or DiskANN's tools of those versions built.

        Of one that is not ours the files begin with ``prefix``; ``metric`` and ``dtype`` (float32, int8 or uint8) are asked for
        where no metadata file says them. ``reader`` brings the nodes: ``"aio"`` (Linux's asynchronous reads, past the page
        cache), ``"threads"``, ``"memory"`` (the mapped file), or ``"auto"``: ``memory`` where the file is in the page cache,
        else the first that works here. At most ``max_searches`` run at once (from memory no more than there are processors),
        further ones wait. ``hop_delay_s`` slows each hop down:
        what searches over a slower store look like.

        Does one search, so that the first of yours does not wait for the compiler, and fails here where the files do not work.
        Raises IndexFormatError for files that are missing, damaged, or of another kind.
        """
        if not 0 <= hop_delay_s < 3600 or not (isinstance(max_searches, int) and max_searches >= 1):
            raise InvalidInputError(
                f"max_searches is at least 1 and hop_delay_s at least 0, but {max_searches!r}, {hop_delay_s!r} came."
            )
        folder = Path(directory)
        manifest = Manifest.read(folder)
        layout = read_layout(folder, prefix=prefix, dtype=None if manifest is not None else _dtype(dtype))
        space = _foreign_space(folder, prefix, layout, metric) if manifest is None else manifest.space
        _require_match(layout, space, manifest)
        opened = open_reader(layout.path, layout.geometry, reader)
        try:
            index = cls(folder, layout, space, opened, manifest=manifest, max_searches=max_searches, hop_delay_s=hop_delay_s)
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
        fitted to every other query and judged by the rest. Returns the table with the new rows.
        """
        rows = np.asarray(queries)
        if rows.ndim != 2 or len(rows) < calibrating.MIN_QUERIES:
            raise InvalidInputError(f"Calibration takes {calibrating.MIN_QUERIES} queries or more, but {rows.shape} came.")
        if not 0 < precision <= 1:
            raise InvalidInputError(f"precision is a share above 0, at most 1, but {precision!r} came.")
        fitted = []
        for complexity in complexities:
            traces = [self.trace(query, top_k=top_k, complexity=complexity, beam_width=beam_width) for query in rows]
            thresholds = calibrating.fit(traces[::2], precision)
            judgement = calibrating.judge(traces[1::2], thresholds)
            fitted.append(calibrating.Row(top_k, complexity, beam_width, thresholds, judgement, len(traces[1::2])))
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


def _read_labels(directory: Path, manifest: Manifest | None) -> Array | None:
    if manifest is None or not manifest.has_labels:
        return None
    path = directory / LABELS_FILE
    try:
        labels: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexFormatError(f"{path}: it holds no ids: {error}. Build the index again.") from error
    if labels.shape != (manifest.num_points,) or labels.dtype != np.int64:
        raise IndexFormatError(f"{path}: {labels.dtype} {labels.shape}, but {manifest.num_points} ids belong here.")
    return labels


def _dtype(dtype: Any) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    wanted: np.dtype[Any] = np.dtype(dtype)
    if wanted not in (np.float32, np.int8, np.uint8):
        raise InvalidInputError(f"dtype is float32, int8 or uint8, but {dtype!r} came.")
    return wanted


def _foreign_space(directory: Path, prefix: str, layout: Layout, metric: Metric | None) -> Space:
    """The metric of an index that is not ours. Only Euclidean ones, and inner products by C++, are stored in a way known
    here.
    """
    metadata = read_metadata(directory, prefix, layout.writer)
    known: dict[str, Metric] = {"l2": "l2"}
    if layout.max_norm is not None:
        known["mips"] = "inner_product"
    if metadata is not None:
        metric = known.get(metadata.metric)
        if metric is None:
            raise IndexFormatError(
                f"{layout.path}: built by {layout.writer} with metric {metadata.metric!r}; known are {', '.join(known)}."
            )
    if metric not in known.values():
        raise InvalidInputError(
            f"{directory} says nothing about its metric. Write metric= one of {', '.join(known.values())} "
            f"({', '.join(METRICS)} are for indexes that DiskANNIndex.build made)."
        )
    assert metric is not None
    return Space(metric, layout.geometry.num_dims - (metric == "inner_product"), layout.max_norm or 1.0)


def _require_match(layout: Layout, space: Space, manifest: Manifest | None) -> None:
    geometry = layout.geometry
    if geometry.num_dims != space.num_stored_dims or space.num_dims < 1:
        raise IndexFormatError(f"{layout.path}: {geometry.num_dims} dimensions, but {space.num_stored_dims} belong here.")
    if manifest is not None and manifest.num_points != geometry.num_points:
        raise IndexFormatError(f"{layout.path}: {geometry.num_points} points, but {manifest.num_points} belong here.")
