"""The date that a page gives itself. Pure; runs in an extraction process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice

import htmldate
from lxml import etree, html  # type: ignore[import-untyped]

_MAX_TIMES = 20
_TELLING = etree.XPath(  # of a head; a description may have any number in it
    "./title | .//meta[not(contains(@name, 'description') or contains(@property, 'description') or @name='viewport')]"
    " | ./link | .//abbr | .//time | ./script[contains(@type, 'json')]"
)
_YEAR = re.compile(r"\d\d")  # the least that every date has; in an address it has the century, too
_YEAR_OF_URL = re.compile(r"\d{4}")


def date_of(root: etree._Element, url: str) -> str | None:
    """When a page was last changed, or else published: ``YYYY-MM-DD``, as its head, its ``<time>`` elements or its address say.

    The text is not searched for dates: they are seldom the page's own, and on a long page that takes as long as its extraction.
    """
    telling = [each for head in islice(root.iter("head"), 1) for each in _TELLING(head)]
    times = list(islice(root.iter("time"), _MAX_TIMES))
    if not _YEAR_OF_URL.search(url) and not any(map(_YEAR.search, _words_of([*telling, *times]))):
        return None
    marked = html.Element("html")
    etree.SubElement(marked, "head").extend(map(_copy, telling))
    etree.SubElement(marked, "body").extend(map(_copy, times))
    try:
        found: str | None = htmldate.find_date(marked, extensive_search=False, url=url)
    except Exception:  # whatever a stranger wrote there; the page is worth reading without
        return None
    return found


def _words_of(elements: list[etree._Element]) -> Iterator[str]:
    """All that could hold a date in them."""
    for each in elements:
        yield from each.attrib.values()
        yield from each.itertext()


def _copy(element: etree._Element) -> etree._Element:
    """The element without the text that follows it."""
    copied = deepcopy(element)
    copied.tail = None
    return copied
