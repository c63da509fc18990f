"""The date that a page gives itself. Pure; runs in an extraction process."""

from __future__ import annotations

from copy import deepcopy
from itertools import islice

import htmldate
from lxml import etree, html  # type: ignore[import-untyped]

_MAX_TIMES = 20


def date_of(root: etree._Element, url: str) -> str | None:
    """When a page was last changed, or else published: ``YYYY-MM-DD``, as its head, its ``<time>`` elements or its address say.

    The text is not searched for dates: they are seldom the page's own, and on a long page that takes as long as its extraction.
    """
    marked = html.Element("html")
    marked.extend(deepcopy(head) for head in islice(root.iter("head"), 1))
    body = etree.SubElement(marked, "body")
    body.extend(deepcopy(time) for time in islice(root.iter("time"), _MAX_TIMES))
    try:
        found: str | None = htmldate.find_date(marked, extensive_search=False, url=url)
    except Exception:  # whatever a stranger wrote there; the page is worth reading without
        return None
    return found
