"""Texts that are nearly the same: their signatures (MinHash), and which of those seen before is nearest. Pure.

Two pages of one text in two layouts, or in two versions, would fill a context twice. How alike two texts are is how many runs
of five words are in both, of all that are in either (Broder, 1997). A signature holds the least hash of a text's runs in each
of 128 places, where the hash itself says which place it belongs to (one permutation hashing: Li, Owen and Zhang, 2012), so that
each run is hashed once, and not once for each place. The share of places in which two signatures are equal, of those that are
not empty in both, estimates the likeness without bias, give or take 3 in 100 for texts that are nine tenths alike.

datasketch was tried first. It imports SciPy, and so put off the first page of a crawl by 0.7 s; what a crawl needs of it is the
few lines of :func:`signature_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

NUM_PLACES = 128
SIGNATURE_BYTES = 4 * NUM_PLACES
_RUN = 5  # words
_MIN_RUNS = 50  # below it a signature says little, and short pages from one template are alike
_EMPTY = 2**32 - 1  # a place that no run belongs to
_FIRST_OF_PLACE = np.arange(NUM_PLACES, dtype=np.uint64) << np.uint64(57)  # the upper 7 bits of a hash are its place
_FACTOR = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64 (Steele, Lea and Flood, 2014)

_Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]
_Places = np.ndarray[tuple[int], np.dtype[np.uint32]]


def signature_of(terms: Sequence[str]) -> bytes | None:
    """The signature of a text with these words, in SIGNATURE_BYTES; None where it is too short for one."""
    hashes = np.unique(_hashes_of_runs(terms))  # in order, so the first of a place is its least
    if len(hashes) < _MIN_RUNS:
        return None
    firsts = np.searchsorted(hashes, _FIRST_OF_PLACE)
    sizes = np.diff(firsts, append=len(hashes))
    least = hashes[np.minimum(firsts, len(hashes) - 1)] >> np.uint64(25) & np.uint64(2**32 - 1)
    return np.where(sizes, least, _EMPTY).astype("<u4").tobytes()


def _hashes_of_runs(terms: Sequence[str]) -> _Hashes:
    """A hash of each run of words, the same in every process."""
    if len(terms) < _RUN:
        return np.empty(0, np.uint64)
    words = np.fromiter(map(crc32, " ".join(terms).encode(errors="surrogatepass").split(b" ")), np.uint64, len(terms))
    num_runs = len(terms) - _RUN + 1
    hashes = np.zeros(num_runs, np.uint64)
    for i in range(_RUN):
        hashes = _mixed(hashes + words[i : i + num_runs])
    return hashes


def _mixed(numbers: _Hashes) -> _Hashes:
    """The first half of the mixing of splitmix64: numbers that are near each other land anywhere."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * _FACTOR
    return numbers ^ numbers >> np.uint64(27)


@dataclass(frozen=True, slots=True)
class Likeness:
    """``source`` is the text that is nearest, ``share`` how much of the two is in both, from 0 to 1."""

    source: str
    share: float


class Signatures:
    """The signatures of one crawl. Comparing with all of them takes microseconds for hundreds, a millisecond for 10,000."""

    def __init__(self) -> None:
        self._places = np.empty((16, NUM_PLACES), np.uint32)
        self._sources: list[str] = []

    def nearest(self, signature: bytes) -> Likeness | None:
        """The text that is most like this one; None where there is none yet."""
        if not self._sources:
            return None
        seen, places = self._places[: len(self._sources)], _decode(signature)
        num_empty = (seen[:, places == _EMPTY] == _EMPTY).sum(axis=1)  # in both
        shares = ((seen == places).sum(axis=1) - num_empty) / (NUM_PLACES - num_empty)
        best = int(shares.argmax())
        return Likeness(self._sources[best], float(shares[best]))

    def add(self, signature: bytes, source: str) -> None:
        """Remember a text."""
        if len(self._sources) == len(self._places):
            self._places = np.concatenate([self._places, np.empty_like(self._places)])
        self._places[len(self._sources)] = _decode(signature)
        self._sources.append(source)


def _decode(signature: bytes) -> _Places:
    return np.frombuffer(signature, "<u4")
