"""Ordinary pages: a tree of them over several hosts, with navigation, articles, tables and code, as sites have. Pure.

Everything follows from the number of pages. One page, deep in the tree, answers QUESTION; the links on the way to it say so
a little more at each step, as headings of a site do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

QUESTION = "How is a neutrino telescope calibrated in deep water?"
ANSWER = "A neutrino telescope in deep water is calibrated with laser flashes whose timing every optical module records."
_WAY = ("Instruments of science", "Telescope designs", "Neutrino telescope", "Neutrino telescope calibrated in deep water")
_BRANCHES = 8
_NUM_RELATED = 4
NUM_PARAGRAPHS = 9


def _words(text: str, separator: str | None = None) -> list[str]:
    return [word.strip() for word in text.split(separator)]


_SUBJECTS = _words("""
    harbour granary orchard viaduct lantern foundry tannery quarry mill archive garden bakery brewery chapel depot ferry
    gallery hamlet island kiln library market nursery observatory pottery railway smithy theatre vineyard workshop
""")
_PLACES = _words("""
    Ardmore Belcourt Carrow Dunmere Eastleigh Farrow Glenmoor Halden Inverley Jarrow Kelso Linton Marlow Norwick Ormsby
    Penrith Quarley Redmond Selby Thornby Upwell Varley Weston Yarrow
""")
_VERBS = _words("keeps repaired sold moved opened closed painted measured recorded rebuilt lent guarded counted praised")
_THINGS = _words("""
    barrels ledgers bricks ropes candles maps wagons sheets timbers bells carpets letters tools seeds fences wheels lamps
    blankets crates stones paintings coins baskets gates
""")
_ADJECTIVES = _words("old heavy painted narrow distant wooden quiet broken northern borrowed early common careful costly")
_TIMES = _words("before the winter;after the long dispute;every third year;without much notice;by order of the council", ";")


@dataclass(frozen=True, slots=True)
class Library:
    """``hosts`` are ``name:port``; page 0 is the entrance, and page i stands on host i modulo their number."""

    num_pages: int
    hosts: tuple[str, ...]
    num_paragraphs: int = NUM_PARAGRAPHS

    @property
    def entrance(self) -> str:
        """Where a crawl starts."""
        return self.url(0)

    @property
    def answer_url(self) -> str:
        """The one page that answers QUESTION."""
        return self.url(self._way()[-1])

    def urls(self) -> Iterator[str]:
        """Of all pages."""
        return map(self.url, range(self.num_pages))

    def url(self, number: int) -> str:
        """Of one page."""
        return f"http://{self.hosts[number % len(self.hosts)]}{self.path(number)}"

    def path(self, number: int) -> str:
        """Of one page on its host."""
        return f"/pages/{number}-{self.title(number).lower().replace(' ', '-')}"

    def title(self, number: int) -> str:
        """Its own, and what links to it say."""
        way = self._way()
        if number in way:
            return _WAY[-1] if number == way[-1] else _WAY[way.index(number)]
        dice = random.Random(number)
        return f"The {dice.choice(_SUBJECTS)} of {dice.choice(_PLACES)}"

    def html(self, number: int, extra_links: tuple[str, ...] = ()) -> bytes:
        """The page, about 20 kB, with links to its children, to some others, and to ``extra_links``."""
        dice = random.Random(f"page {number}")
        title = self.title(number)
        related = [dice.randrange(self.num_pages) for _ in range(_NUM_RELATED)]
        article = "".join(self._sections(dice))
        if number == self._way()[-1]:
            article = f"<p>{ANSWER}</p>" + article
        return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="description" content="{_sentence(dice)}"><style>{_STYLE}</style><script>{_SCRIPT}</script></head>
<body><header><nav><ul>{self._links(range(min(self.num_pages, 1 + _BRANCHES)))}</ul></nav></header>
<main><article><h1>{title}</h1>{article}</article></main>
<aside><h2>Read on</h2><ul>{self._links(self._children(number))}</ul><h2>Related</h2><ul>{self._links(related)}</ul>
<ul>{"".join(f'<li><a href="{escape(link)}">More</a></li>' for link in extra_links)}</ul></aside>
<footer><p>Page {number} of {self.num_pages}</p></footer></body></html>""".encode()

    def _children(self, number: int) -> range:
        first = number * _BRANCHES + 1
        return range(min(first, self.num_pages), min(first + _BRANCHES, self.num_pages))

    def _way(self) -> list[int]:
        """From the entrance (left out) to the page that answers, always by the last child."""
        number, way = 0, []
        while children := self._children(number):
            number = children[-1]
            way.append(number)
        return way[: len(_WAY)] or [0]

    def _links(self, numbers: range | list[int]) -> str:
        return "".join(f'<li><a href="{self.url(number)}">{self.title(number)}</a></li>' for number in numbers)

    def _sections(self, dice: random.Random) -> Iterator[str]:
        for number in range(self.num_paragraphs):
            if number % 3 == 0:
                yield f"<h2>{_sentence(dice)}</h2>"
            yield f"<p>{' '.join(_sentence(dice) for _ in range(dice.randrange(5, 10)))}</p>"
        yield f"<ul>{''.join(f'<li>{_sentence(dice)}</li>' for _ in range(6))}</ul>"
        rows = (f"<tr><td>{dice.choice(_PLACES)}</td><td>{dice.randrange(10_000)}</td></tr>" for _ in range(12))
        yield f"<table><tr><th>Place</th><th>Number</th></tr>{''.join(rows)}</table>"
        yield f"<pre><code>{escape(_CODE)}</code></pre>"


def _sentence(dice: random.Random) -> str:
    return (
        f"The {dice.choice(_ADJECTIVES)} {dice.choice(_SUBJECTS)} of {dice.choice(_PLACES)} {dice.choice(_VERBS)} "
        f"{dice.randrange(2, 900)} {dice.choice(_ADJECTIVES)} {dice.choice(_THINGS)} {dice.choice(_TIMES)}."
    )


_STYLE = "".join(f".box-{i} > li:nth-child({i}) {{ margin: {i}px; color: #{i:06x} }}\n" for i in range(60))
_SCRIPT = "".join(f"window.queue = window.queue || []; window.queue.push(['event', {i}, Date.now()]);\n" for i in range(60))
_CODE = "for place in places:\n    if place.number < 100:\n        print(place.name)\n"
