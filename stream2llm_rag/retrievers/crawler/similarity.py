"""Texts that are nearly the same: their signatures (MinHash), and which of those seen before is nearest. Pure.

Two pages of one text in two layouts, or in two versions, would fill a context twice. The share of places in which two
signatures are equal is that of the runs of five words that both texts have, of all that either has (Broder, 1997), give or take
3 in 100 here.

datasketch was tried first. It imports SciPy, and so put off the first page of a crawl by 0.7 s; what a crawl needs of it is the
few lines of :func:`signature_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from stream2llm_rag.retrievers.crawler.relevance import terms_of

NUM_PLACES = 128
SIGNATURE_BYTES = 4 * NUM_PLACES
_RUN = 5  # words
_MIN_RUNS = 50  # below it a signature says little, and short pages from one template are alike
_NUM_AT_ONCE = 4_096  # runs, to bound memory
# One hash function for each place: the upper half of a x + b modulo 2^64, with odd a (multiply-shift; Dietzfelbinger, 1996).
_FACTORS, _OFFSETS = np.random.default_rng(1997).integers(2**64, size=(2, NUM_PLACES), dtype=np.uint64)
_FACTORS |= np.uint64(1)


def signature_of(text: str) -> bytes | None:
    """The signature of a text, in SIGNATURE_BYTES; None where it is too short for one."""
    terms = terms_of(text)
    runs = {" ".join(terms[i : i + _RUN]) for i in range(len(terms) - _RUN + 1)}
    if len(runs) < _MIN_RUNS:
        return None
    hashes = np.fromiter((crc32(run.encode(errors="surrogatepass")) for run in runs), np.uint64, len(runs))
    least = np.full(NUM_PLACES, 2**32 - 1, np.uint64)
    for start in range(0, len(hashes), _NUM_AT_ONCE):
        some = hashes[start : start + _NUM_AT_ONCE, np.newaxis]
        np.minimum(least, (some * _FACTORS + _OFFSETS >> np.uint64(32)).min(axis=0), out=least)
    return least.astype("<u4").tobytes()


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
        shares = (self._places[: len(self._sources)] == _decode(signature)).mean(axis=1)
        best = int(shares.argmax())
        return Likeness(self._sources[best], float(shares[best]))

    def add(self, signature: bytes, source: str) -> None:
        """Remember a text."""
        if len(self._sources) == len(self._places):
            self._places = np.concatenate([self._places, np.empty_like(self._places)])
        self._places[len(self._sources)] = _decode(signature)
        self._sources.append(source)


def _decode(signature: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(signature, "<u4")
