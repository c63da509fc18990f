"""One search: its state, and the snapshots that it gives on its way. Blocking; :mod:`.stream` takes it off the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stream2llm_rag.errors import IndexFormatError, InvalidInputError, RetrievalError
from stream2llm_rag.retrievers.diskann import kernels
from stream2llm_rag.retrievers.diskann import state as states
from stream2llm_rag.retrievers.diskann.layout import NUM_CENTERS, Layout
from stream2llm_rag.retrievers.diskann.matrices import Array
from stream2llm_rag.retrievers.diskann.metrics import PreparedQuery, Space
from stream2llm_rag.retrievers.diskann.reading import MAX_BEAM_WIDTH, Lane
from stream2llm_rag.retrievers.diskann.stability import Snapshot
from stream2llm_rag.retrievers.diskann.state import State

MAX_COMPLEXITY = 100_000
_MAX_EPOCH = 2**32 - 1
_ALL_HOPS = 2**62

_DAMAGE = {
    states.DEGREE_WRONG: "node {node} says that it has more neighbours than a node can have",
    states.NEIGHBOUR_WRONG: "node {node} has a neighbour that is not in the index",
    states.NOT_FINITE: "the vector of node {node} is not finite",
    states.READ_SHORT: "node {node} could not be read in full",
}


@dataclass(frozen=True, slots=True)
class SearchParameters:
    """``top_k`` neighbours, found among ``complexity`` candidates (L in the DiskANN paper), ``beam_width`` nodes read at
    once.
    """

    top_k: int = 10
    complexity: int = 100
    beam_width: int = 4

    def check(self, num_points: int) -> None:
        """InvalidInputError where they cannot be used, or not with an index of that many points."""
        for name, value, most in (
            ("top_k", self.top_k, num_points),
            ("complexity", self.complexity, MAX_COMPLEXITY),
            ("beam_width", self.beam_width, MAX_BEAM_WIDTH),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidInputError(f"{name} is a whole number from 1 to {most}, but {value!r} came.")
        if self.top_k > self.complexity:
            raise InvalidInputError(
                f"top_k={self.top_k} neighbours cannot be found among complexity={self.complexity} candidates. "
                "Write a complexity that is at least top_k; several times as much finds better ones."
            )


class Workspace:
    """What one search at a time works in: a lane, and the nodes that it has seen, 4 bytes for each point of the index."""

    def __init__(self, lane: Lane, num_points: int) -> None:
        self.lane = lane
        self.visited = np.zeros(num_points, np.uint32)
        self._epoch = 0

    def next_epoch(self) -> int:
        """A number that is nowhere in ``visited``."""
        if self._epoch >= _MAX_EPOCH:
            self.visited[:] = 0
            self._epoch = 0
        self._epoch += 1
        return self._epoch


class Search:
    """One pass over the graph. ``stop()`` may be called from any thread and ends it between two hops."""

    def __init__(
        self, layout: Layout, space: Space, query: PreparedQuery, parameters: SearchParameters, labels: Array | None = None
    ) -> None:
        self._layout = layout
        self._space = space
        self._query = query
        self._parameters = parameters
        self._labels = labels
        self._stop = np.zeros(1, np.uint8)

    def stop(self) -> None:
        """End the search before its next hop."""
        self._stop[0] = 1

    @property
    def is_stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return bool(self._stop[0])

    def snapshots(self, workspace: Workspace, hops_per_snapshot: int = 1) -> Iterator[Snapshot]:
        """A snapshot after every so many hops, and the final one last. None more once the search was stopped.

        Raises IndexFormatError where the search meets damage, RetrievalError where the system does not read.
        """
        state = self._begin(workspace)
        while True:
            workspace.lane.advance(state, hops_per_snapshot)
            self._raise_error(state)
            if self.is_stopped:
                return
            snapshot = self._snapshot(state)
            yield snapshot
            if snapshot.is_final:
                return

    def run(self, workspace: Workspace) -> Snapshot | None:
        """The final snapshot alone; None where the search was stopped before."""
        state = self._begin(workspace)
        workspace.lane.advance(state, _ALL_HOPS)
        self._raise_error(state)
        return None if self.is_stopped else self._snapshot(state)

    def _begin(self, workspace: Workspace) -> State:
        quantizer, parameters = self._layout.quantizer, self._parameters
        num_candidates, top_k, beam_width = parameters.complexity, parameters.top_k, parameters.beam_width
        table = np.empty((len(quantizer.chunks) - 1, NUM_CENTERS), np.float32)
        kernels.fill_table(table, self._query.vector - quantizer.mean, quantizer.centers, quantizer.chunks)
        counters = np.zeros(states.NUM_COUNTERS, np.int64)
        counters[states.EPOCH] = workspace.next_epoch()
        state = State(
            np.zeros(num_candidates, np.int64),
            np.zeros(num_candidates, np.float32),
            np.zeros(num_candidates, np.uint8),
            np.zeros(top_k, np.int64),
            np.zeros(top_k, np.float32),
            np.zeros(top_k, np.int64),
            np.zeros(beam_width, np.int64),
            np.zeros(beam_width, np.float32),
            counters,
            np.zeros(3, np.float64),
            workspace.visited,
            table,
            self._layout.codes,
            self._query.vector,
            self._stop,
        )
        kernels.start(state, self._start_node())
        return state

    def _start_node(self) -> int:
        starts = self._layout.starts
        if len(starts) == 1:
            return int(starts[0])
        return int(starts[np.argmin(((self._layout.start_vectors - self._query.vector) ** 2).sum(1))])

    def _snapshot(self, state: State) -> Snapshot:
        counters = state.counters
        num_top, num_hops, num_reads = (int(counters[i]) for i in (states.NUM_TOP, states.NUM_HOPS, states.NUM_READS))
        is_final = bool(kernels.is_done(state))
        expected = np.empty(self._parameters.top_k, np.float64)
        kernels.expected_overtakers(state, expected)
        places_below = self._parameters.top_k - 1 - np.arange(num_top)
        ids = state.top_ids[:num_top]
        num_expected = min(self._parameters.complexity, self._layout.geometry.num_points)
        return Snapshot(
            ids=tuple((ids if self._labels is None else self._labels[ids]).tolist()),
            distances=tuple(self._space.distances(state.top_distances[:num_top], self._query).tolist()),
            slack=tuple((places_below - expected[:num_top]).tolist()),
            age=tuple((num_hops - state.top_hops[:num_top]).tolist()),
            num_reads=num_reads,
            num_hops=num_hops,
            progress=1.0 if is_final else min(1.0, num_reads / num_expected),
            is_final=is_final,
        )

    def _raise_error(self, state: State) -> None:
        error, node = int(state.counters[states.ERROR]), int(state.counters[states.ERROR_NODE])
        if error in _DAMAGE:
            words = _DAMAGE[error].format(node=node)
            raise IndexFormatError(f"{self._layout.path}: {words}. The file is damaged: build the index again.")
        if error:
            raise RetrievalError(f"{self._layout.path}: the system refused to read node {node}. Try reader='threads'.")
