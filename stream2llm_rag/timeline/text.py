"""The words of strangers made fit to be shown: cleaned, measured in columns, and cut to length.

Cleaning is for eyes and terminals: it drops what is invisible or gives commands. Escaping for XML or HTML comes on top of it,
where the markup is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

MAX_CHARACTERS = 400
_MAX_MARKS = 4  # of one letter: Vietnamese and Hebrew stack three, what goes on stacking means to paint over its neighbours

# Escape sequences as ECMA-48 forms them: CSI, the strings (OSC, DCS, SOS, PM, APC) with their terminator, and single escapes.
_ESCAPE_SEQUENCE = re.compile(
    r"""(?: \x1b\[ | \x9b ) [0-?]* [\x20-/]* [@-~]?
    |   (?: \x1b[]PX^_] | [\x90\x98\x9d-\x9f] ) [^\x07\x1b\x9c]* (?: \x07 | \x1b\\ | \x9c )?
    |   \x1b [\x20-/]* [0-~]?""",
    re.VERBOSE,
)


def clean(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """``text`` on one line, without escape sequences, control, bidirectional and other invisible characters.

    Looks at no more than the first ``4 * max_characters``, to leave room for what it drops. Unpaired surrogates and unassigned
    characters, which XML and encoders refuse, become U+FFFD.
    """
    visible = "".join(_visible(_ESCAPE_SEQUENCE.sub("", text[: 4 * max_characters])))
    shown = " ".join(visible.split())
    return shown if len(shown) <= max_characters else shown[: max_characters - 1] + "…"


def _visible(text: str) -> Iterator[str]:
    num_marks = 0
    for character in text:
        category = unicodedata.category(character)
        num_marks = num_marks + 1 if category in ("Mn", "Me") else 0
        if character.isspace():
            yield " "
        elif category not in ("Cc", "Cf") and num_marks <= _MAX_MARKS:
            yield "\ufffd" if category.startswith("C") else character


def num_columns(text: str) -> int:
    """Columns of a terminal that cleaned ``text`` takes: two for wide characters (UAX #11), none for combining marks."""
    return sum(_num_columns(character) for character in text)


def _num_columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(text: str, columns: int) -> str:
    """``text``, cleaned and cut with an ellipsis so that it takes at most ``columns`` columns."""
    text = clean(text)
    if num_columns(text) <= columns:
        return text
    kept, used = [], 1
    for character in text:
        used += _num_columns(character)
        if used > columns:
            break
        kept.append(character)
    return ("".join(kept).rstrip() + "…") if columns > 0 else ""
