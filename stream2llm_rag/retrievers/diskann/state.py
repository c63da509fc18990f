"""What the compiled search works on: its state, and its requests to the disk.

NamedTuples, which compiled code takes as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from stream2llm_rag.retrievers.diskann.matrices import Array

# Counters of a search, by their place in ``State.counters``.
NUM_CANDIDATES, CURSOR, NUM_TOP, NUM_HOPS, NUM_READS, ERROR, EPOCH, NUM_BEAM, ERROR_NODE = range(9)
NUM_COUNTERS = 9
# What can go wrong, by its number in ``counters[ERROR]``.
DEGREE_WRONG, NEIGHBOUR_WRONG, NOT_FINITE, SUBMIT_FAILED, WAIT_FAILED, READ_SHORT = range(1, 7)


class State(NamedTuple):
    """One search under way; L candidates at most, k of them wanted. Distances are squared Euclidean ones.

    ``candidate_*``: ids i64[L], approximate distances f32[L], expanded u8[L], nearest first. ``top_*``: ids i64[k], exact
    distances f32[k], and the hop that brought them i64[k]. ``beam_*``: ids i64[W] and approximate distances f32[W] of the nodes
    of this hop. ``moments`` f64[3]: number, sum, and sum of squares of exact less approximate distances. ``visited``
    u32[num_points] holds the epoch in which a node was seen. ``table`` f32[num_chunks, 256], ``codes`` u8[num_points,
    num_chunks], ``query`` f32[num_dims]. ``stop`` u8[1]: not 0 ends the search after this hop.
    """

    candidate_ids: Array
    candidate_distances: Array
    candidate_expanded: Array
    top_ids: Array
    top_distances: Array
    top_hops: Array
    beam_ids: Array
    beam_distances: Array
    counters: Array
    moments: Array
    visited: Array
    table: Array
    codes: Array
    query: Array
    stop: Array


class Requests(NamedTuple):
    """Linux's asynchronous reads. ``buffer`` u8[W * sectors * 4096], aligned to a sector, at ``address``.

    ``iocbs`` i64[W, 8], their addresses ``pointers`` i64[W], ``events`` i64[W, 4] (``linux/aio_abi.h``). ``submit`` and
    ``getevents`` are numbers of system calls.
    """

    file: int
    context: int
    submit: int
    getevents: int
    buffer: Array
    address: int
    iocbs: Array
    pointers: Array
    events: Array
