"""The search itself, compiled: everything here runs without the GIL.

One hop takes the nearest candidates that were not expanded yet (the beam), reads their nodes, computes their exact distances,
and puts their neighbours among the candidates by their approximate ones. That is the beam search of DiskANN (NeurIPS 2019,
section 2.2); the order of insertion and the ties are those of its C++ code (``NeighborPriorityQueue::insert``), so that the
same index gives the same neighbours.

All that is compiled is in this file: numba keeps compiled code by the file of its entry point, and would not see that another
one changed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types

from stream2llm_rag.retrievers.diskann.layout import NUM_CENTERS, SECTOR_BYTES, Geometry
from stream2llm_rag.retrievers.diskann.matrices import Array
from stream2llm_rag.retrievers.diskann.state import (
    CURSOR,
    DEGREE_WRONG,
    EPOCH,
    ERROR,
    ERROR_NODE,
    NEIGHBOUR_WRONG,
    NOT_FINITE,
    NUM_BEAM,
    NUM_CANDIDATES,
    NUM_HOPS,
    NUM_READS,
    NUM_TOP,
    READ_SHORT,
    SUBMIT_FAILED,
    WAIT_FAILED,
    Requests,
    State,
)

logger = logging.getLogger(__name__)

# Not all of fastmath: a vector that is not finite must be seen.
_REORDER = {"reassoc", "contract", "arcp", "nsz"}

_long = types.int64
_syscall3 = types.ExternalFunction("syscall", _long(_long, _long, _long, _long))
_syscall5 = types.ExternalFunction("syscall", _long(_long, _long, _long, _long, _long, _long))
_errno = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())
_EINTR = 4


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function, to run without the GIL; once on a machine where the result can be kept, else in each process."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither this folder nor the user's cache can be written to, and no NUMBA_CACHE_DIR is set
            logger.debug("compiled code cannot be kept", exc_info=True)
            return njit(nogil=True, **options)(function)

    return compiled


@_compiled(fastmath=_REORDER)
def fill_table(table: Array, query: Array, centers: Array, chunks: Array) -> None:
    """Squared distances of each chunk of ``query`` (less the mean) to its 256 centres, into ``table``."""
    for chunk in range(len(chunks) - 1):
        for center in range(NUM_CENTERS):
            table[chunk, center] = 0.0
        for dim in range(chunks[chunk], chunks[chunk + 1]):
            for center in range(NUM_CENTERS):
                difference = centers[dim, center] - query[dim]
                table[chunk, center] += difference * difference


@_compiled(forceinline=True, fastmath=_REORDER)
def _approximate(table: Array, codes: Array, node: int) -> Any:
    total = np.float32(0)
    for chunk in range(table.shape[0]):
        total += table[chunk, codes[node, chunk]]
    return total


@_compiled(forceinline=True, fastmath=_REORDER)
def _squared_distance(vector: Array, query: Array) -> Any:
    total = np.float32(0)
    for dim in range(len(query)):
        difference = np.float32(vector[dim]) - query[dim]
        total += difference * difference
    return total


@_compiled(forceinline=True)
def _exact(geometry: Geometry, state: State, node_bytes: Array) -> Any:
    stored = node_bytes[: geometry.vector_bytes]
    if geometry.element_bytes == 4:
        return _squared_distance(stored.view(np.float32), state.query)
    if geometry.element_bytes == 1:
        return _squared_distance(stored, state.query)
    return _squared_distance(stored.view(np.int8), state.query)


@_compiled(forceinline=True)
def _add_candidate(ids: Array, distances: Array, expanded: Array, counters: Array, node: int, distance: Any) -> None:
    """Put a node among the candidates, or leave it where L nearer ones are there.

    Here and above, arrays and not the whole State: this runs once for each neighbour, and a call hands over every field.
    """
    size, capacity = counters[NUM_CANDIDATES], len(ids)
    if size == capacity:
        last = distances[size - 1]
        if last < distance or (last == distance and ids[size - 1] < node):
            return
    low, high = 0, size
    while low < high:
        middle = (low + high) >> 1
        if distance < distances[middle] or (distance == distances[middle] and node < ids[middle]):
            high = middle
        elif ids[middle] == node:
            return
        else:
            low = middle + 1
    if low >= capacity:
        return
    for place in range(min(size, capacity - 1), low, -1):
        ids[place], distances[place], expanded[place] = ids[place - 1], distances[place - 1], expanded[place - 1]
    ids[low], distances[low], expanded[low] = node, distance, 0
    counters[NUM_CANDIDATES] = min(size + 1, capacity)
    counters[CURSOR] = min(counters[CURSOR], low)


@_compiled(forceinline=True)
def _add_top(state: State, node: int, distance: Any) -> None:
    ids, distances, hops = state.top_ids, state.top_distances, state.top_hops
    size, capacity = state.counters[NUM_TOP], len(ids)
    if size == capacity and not distance < distances[size - 1]:
        return
    place = min(size, capacity - 1)
    while place > 0 and distance < distances[place - 1]:
        ids[place], distances[place], hops[place] = ids[place - 1], distances[place - 1], hops[place - 1]
        place -= 1
    ids[place], distances[place], hops[place] = node, distance, state.counters[NUM_HOPS]
    state.counters[NUM_TOP] = min(size + 1, capacity)


@_compiled(forceinline=True)
def is_done(state: State) -> bool:
    """Whether every candidate was expanded, something went wrong, or somebody wants the search to end."""
    counters = state.counters
    return counters[CURSOR] >= counters[NUM_CANDIDATES] or counters[ERROR] != 0 or state.stop[0] != 0


@_compiled(forceinline=True)
def take_beam(state: State) -> int:
    """Mark the nearest candidates that were not expanded yet as the beam of a new hop; how many they are."""
    counters, expanded = state.counters, state.candidate_expanded
    size, cursor, num_beam = counters[NUM_CANDIDATES], counters[CURSOR], 0
    while cursor < size and num_beam < len(state.beam_ids):
        expanded[cursor] = 1
        state.beam_ids[num_beam] = state.candidate_ids[cursor]
        state.beam_distances[num_beam] = state.candidate_distances[cursor]
        num_beam += 1
        while cursor < size and expanded[cursor] == 1:
            cursor += 1
    counters[CURSOR] = cursor
    counters[NUM_HOPS] += 1
    counters[NUM_READS] += num_beam
    counters[NUM_BEAM] = num_beam
    return num_beam


@_compiled(forceinline=True)
def first_sector(geometry: Geometry, node: int) -> int:
    """The sector in which a node starts."""
    if geometry.nodes_per_sector > 0:
        return 1 + node // geometry.nodes_per_sector
    return 1 + node * geometry.sectors_per_node


@_compiled(forceinline=True)
def offset_in_sector(geometry: Geometry, node: int) -> int:
    """Bytes before a node in its sector."""
    return (node % geometry.nodes_per_sector) * geometry.node_bytes if geometry.nodes_per_sector > 0 else 0


@_compiled(forceinline=True)
def _fail(state: State, error: int, node: int) -> None:
    state.counters[ERROR] = error
    state.counters[ERROR_NODE] = node


@_compiled(forceinline=True)
def _expand(geometry: Geometry, state: State, place: int, node_bytes: Array) -> None:
    """Take in the node at a place of the beam: its exact distance, and its neighbours as candidates."""
    node = state.beam_ids[place]
    distance = _exact(geometry, state, node_bytes)
    if not math.isfinite(distance):
        _fail(state, NOT_FINITE, node)
        return
    error = np.float64(distance) - np.float64(state.beam_distances[place])
    state.moments[0] += 1
    state.moments[1] += error
    state.moments[2] += error * error
    _add_top(state, node, distance)
    neighbours = node_bytes[geometry.vector_bytes :].view(np.uint32)
    degree = neighbours[0]
    if degree > geometry.max_degree:
        _fail(state, DEGREE_WRONG, node)
        return
    ids, distances, expanded = state.candidate_ids, state.candidate_distances, state.candidate_expanded
    counters, visited, table, codes = state.counters, state.visited, state.table, state.codes
    epoch = counters[EPOCH]
    for edge in range(1, degree + 1):
        neighbour = np.int64(neighbours[edge])
        if neighbour >= geometry.num_points:
            _fail(state, NEIGHBOUR_WRONG, node)
            return
        if visited[neighbour] != epoch:
            visited[neighbour] = epoch
            _add_candidate(ids, distances, expanded, counters, neighbour, _approximate(table, codes, neighbour))


@_compiled()
def start(state: State, node: int) -> None:
    """Make ``node`` the only candidate."""
    state.visited[node] = state.counters[EPOCH]
    distance = _approximate(state.table, state.codes, node)
    _add_candidate(state.candidate_ids, state.candidate_distances, state.candidate_expanded, state.counters, node, distance)


@_compiled()
def expand_beam(geometry: Geometry, state: State, buffer: Array) -> None:
    """Take in a beam whose sectors lie one behind the other in ``buffer``."""
    stride = geometry.sectors_per_node * SECTOR_BYTES
    for place in range(state.counters[NUM_BEAM]):
        at = place * stride + offset_in_sector(geometry, state.beam_ids[place])
        _expand(geometry, state, place, buffer[at : at + geometry.node_bytes])
        if state.counters[ERROR]:
            return


@_compiled()
def hop_in_memory(geometry: Geometry, state: State, file: Array, num_hops: int) -> None:
    """Do up to ``num_hops`` hops over the whole file u8[file size] in memory."""
    for _ in range(num_hops):
        if is_done(state):
            return
        for place in range(take_beam(state)):
            node = state.beam_ids[place]
            at = first_sector(geometry, node) * SECTOR_BYTES + offset_in_sector(geometry, node)
            _expand(geometry, state, place, file[at : at + geometry.node_bytes])
            if state.counters[ERROR]:
                return


@_compiled()
def hop_by_requests(geometry: Geometry, state: State, requests: Requests, num_hops: int) -> None:
    """Do up to ``num_hops`` hops, each with all its reads under way at once."""
    for _ in range(num_hops):
        if is_done(state):
            return
        take_beam(state)
        _request_beam(geometry, state, requests)
        if state.counters[ERROR]:
            return
        expand_beam(geometry, state, requests.buffer)


@_compiled()
def _request_beam(geometry: Geometry, state: State, requests: Requests) -> None:
    """Read the sectors of the beam. On failure reads may still be under way: the buffer must outlive the context."""
    num_beam, stride = state.counters[NUM_BEAM], geometry.sectors_per_node * SECTOR_BYTES
    for place in range(num_beam):
        iocb = requests.iocbs[place]
        iocb[0], iocb[1], iocb[2] = place, 0, np.int64(requests.file) << 32  # data; key and flags; IOCB_CMD_PREAD is 0
        iocb[3], iocb[4] = requests.address + place * stride, stride
        iocb[5] = first_sector(geometry, state.beam_ids[place]) * SECTOR_BYTES
    num_submitted = 0
    while num_submitted < num_beam:
        pointer = requests.pointers.ctypes.data + 8 * num_submitted
        done = _syscall3(requests.submit, requests.context, num_beam - num_submitted, pointer)
        if done <= 0:
            _fail(state, SUBMIT_FAILED, state.beam_ids[num_submitted])
            return
        num_submitted += done
    num_read = 0
    while num_read < num_beam:
        left = num_beam - num_read
        done = _syscall5(requests.getevents, requests.context, left, left, requests.events.ctypes.data, 0)
        if done < 0 and carray(_errno(), 1)[0] == _EINTR:
            continue
        if done < 0:
            _fail(state, WAIT_FAILED, state.beam_ids[0])
            return
        for event in range(done):
            if requests.events[event, 2] != stride:
                _fail(state, READ_SHORT, state.beam_ids[requests.events[event, 0]])
        num_read += done


@_compiled()
def expected_overtakers(state: State, expected: Array) -> None:
    """For each of the top k, how many candidates that were not expanded will turn out nearer, into ``expected`` f64[k].

    Exact distances are taken as normal around the approximate ones, with the mean and deviation that this search has seen.
    """
    num = state.moments[0]
    mean = state.moments[1] / num if num > 0 else 0.0
    deviation = math.sqrt(max(state.moments[2] / num - mean * mean, 0.0)) if num > 0 else 0.0
    expected[:] = 0.0
    for place in range(state.counters[CURSOR], state.counters[NUM_CANDIDATES]):
        if state.candidate_expanded[place]:
            continue
        for rank in range(state.counters[NUM_TOP]):
            lead = state.top_distances[rank] - (state.candidate_distances[place] + mean)
            if deviation > 0:
                expected[rank] += 0.5 * math.erfc(-lead / (deviation * math.sqrt(2.0)))
            elif lead > 0:
                expected[rank] += 1.0
