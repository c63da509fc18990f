"""Makes text from outside harmless: nothing invisible stays in it, and nothing that a model reads as structure.

What a person sees stays readable: a marker such as ``<|im_start|>`` becomes ``(im_start)``. Sanitizing twice changes nothing
more than sanitizing once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from stream2llm_rag.errors import InvalidInputError

_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})
# Format characters that have a glyph: the Arabic and Syriac number and abbreviation signs, Unicode's property
# Prepended_Concatenation_Mark.
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Unicode's property Default_Ignorable_Code_Point where the category says something else than "format": joiners, fillers,
# variation selectors, and the plane of tags, all of which can carry text that nobody sees.
_IGNORABLE_RANGES = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2065, 0x2065),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xE0000, 0xE0FFF),
)
# Writers of markers vary these freely; U+2581 is the space of SentencePiece, seen in markers of DeepSeek's models.
_SKIPPED = frozenset("_*\u2581")
_WRAPPERS = ("()", "“”", "«»", "⟨⟩")


class _Visible(dict[int, int | None]):
    """Table for :meth:`str.translate`, filled as characters are met: an invisible one maps to None."""

    def __missing__(self, code: int) -> int | None:
        self[code] = kept = None if _is_invisible(chr(code)) else code
        return kept


class _Folded(dict[int, str]):
    """Table for :meth:`str.translate`, filled as characters are met: what a character counts as in a comparison."""

    def __missing__(self, code: int) -> str:
        compatible = unicodedata.normalize("NFKC", chr(code)).casefold()
        self[code] = folded = "".join(char for char in compatible if not (char.isspace() or char in _SKIPPED))
        return folded


def _is_invisible(char: str) -> bool:
    if char in "\n\t" or char in _VISIBLE_FORMATS:
        return False
    return unicodedata.category(char) in _INVISIBLE_CATEGORIES or any(
        first <= ord(char) <= last for first, last in _IGNORABLE_RANGES
    )


_VISIBLE = _Visible()
_FOLDED = _Folded()


def strip_invisible(text: str) -> str:
    r"""Return ``text`` with only what is seen, ``\n`` and ``\t``.

    Surrogate pairs are joined and unpaired surrogates become U+FFFD; every kind of line break becomes ``\n``; control, format
    (zero-width, bidirectional, soft hyphen, tags), filler and variation selector characters go.
    """
    joined = text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _LINE_BREAK.sub("\n", joined).translate(_VISIBLE)


class Sanitizer:
    """Neutralises ``markers``, the strings that a model or this library reads as structure, in text that is only data.

    A marker is found whatever its case, its spaces, underscores and asterisks, and through compatibility characters (Unicode
    NFKC, such as fullwidth forms). One that begins with a letter is found only where a word begins. Markers that consist of
    letters, digits and slashes alone are words and left alone, as are punctuation marks of one or two characters.

    Raises :class:`~stream2llm_rag.errors.InvalidInputError` where the markers use up every kind of bracket that could
    replace theirs.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = frozenset(folded for marker in markers if _is_structure(folded := marker.translate(_FOLDED)))
        self._wrapper = _unused_wrapper(self._markers)
        self._lengths: dict[str, list[int]] = {}
        for first, length in sorted({(marker[0], len(marker)) for marker in self._markers}, reverse=True):
            self._lengths.setdefault(first, []).append(length)
        # An empty class matches nothing.
        self._openings = re.compile("[" + "".join(map(re.escape, sorted(self._lengths))) + "]" if self._lengths else r"(?!)")

    def sanitize(self, text: str) -> str:
        """Return ``text`` with nothing invisible and no marker in it. Idempotent."""
        text = strip_invisible(text)
        pieces, end = [], 0
        for start, stop in self._find(text):
            pieces += [text[end:start], self._harmless(text[start:stop])]
            end = stop
        return "".join([*pieces, text[end:]])

    def sanitize_line(self, text: str) -> str:
        """Return ``text`` sanitized and on one line, with single spaces."""
        return " ".join(self.sanitize(text).split())

    def _find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield start and end of the markers in ``text``: leftmost first, the longest at each place, none overlapping."""
        folded = text.translate(_FOLDED)
        openings = (match.start() for match in self._openings.finditer(folded))
        found = [(at, size) for at in openings if (size := self._longest(folded, at))]
        if not found:
            return
        origin = [index for index, char in enumerate(text) for _ in _FOLDED[ord(char)]]
        end = 0
        for at, size in found:
            start = origin[at]
            # What comes after a marker that was replaced begins a word: its closing bracket stands before it.
            begins_word = start == end or not (folded[at].isalnum() and text[start - 1].isalnum())
            if start >= end and begins_word:
                end = origin[at + size - 1] + 1
                yield start, end

    def _longest(self, folded: str, at: int) -> int:
        """Return the length of the longest marker that begins at ``at``, 0 where none does."""
        candidates = (folded[at : at + length] for length in self._lengths[folded[at]])
        return next((len(candidate) for candidate in candidates if candidate in self._markers), 0)

    def _harmless(self, marker: str) -> str:
        """Return the words of ``marker`` between brackets that no marker has, so that nothing can match across them."""
        words = "".join(char if _is_word(_FOLDED[ord(char)]) else " " for char in marker).split()
        return " ".join(words).strip("_*\u2581 ").join(self._wrapper)


def _is_word(folded: str) -> bool:
    return all(char.isalnum() or char == "/" for char in folded)


def _is_structure(folded: str) -> bool:
    return not _is_word(folded) and (len(folded) > 2 or any(char.isalnum() for char in folded))


def _unused_wrapper(markers: Iterable[str]) -> str:
    used = set("".join(markers))
    for wrapper in _WRAPPERS:
        if used.isdisjoint(wrapper):
            return wrapper
    raise InvalidInputError(
        f"the chat template and the special tokens use all of {' '.join(_WRAPPERS)}, so no bracket is left to mark text that "
        "imitates them. Write the chat template without one of these pairs"
    )
