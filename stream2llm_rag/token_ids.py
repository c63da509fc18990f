"""What several parts need of sequences of token ids."""

from __future__ import annotations


def common_prefix(left: list[int], right: list[int]) -> int:
    """Length of the longest common prefix; compares slices, which C does, down to the first that differ."""
    end = min(len(left), len(right))
    start = 0
    while start < end:
        stop = min(start + 256, end)
        if left[start:stop] != right[start:stop]:
            return next(i for i in range(start, stop) if left[i] != right[i])
        start = stop
    return end
