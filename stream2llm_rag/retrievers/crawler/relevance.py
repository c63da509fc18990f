"""How well texts answer to a question, by BM25. Pure; runs in an extraction process, as it takes milliseconds on a long page.

Scores lie between 0 and 1: no word of the question, and as good as the question itself. To get there the question is ranked
as one more text among the others. That makes scores of different pages comparable, which plain BM25 scores are not.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rank_bm25 import BM25L

# Letters and digits; scripts without spaces (kana, CJK ideographs) one character each.
_TERM = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
# Words that say how something is asked and not what. In anchor texts they are rare, so BM25 would take them for telling.
_STOP_WORDS_TEXT = """
    a about an and any are as at be been but by can could did do does for from had has have how i if in into is it its may me my
    no not of on or our should so some such than that the their them then there these they this those to use using was we were
    what when where which who whom whose why will with would you your
"""
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
_SENTENCE = re.compile(r".+?(?:[.!?]\s+|[\u3002\uff01\uff1f]|\Z)", re.DOTALL)  # \u3002 and so on: full stops of CJK
_PASSAGE_CHARS = 800
_STRETCH = re.compile(rf".{{1,{_PASSAGE_CHARS - 1}}}(?:\s|\Z)|.{{1,{_PASSAGE_CHARS}}}", re.DOTALL)  # to the end of a word
_GAP = "\n[…]\n"


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What is kept of a page: ``text``, how relevant the page is (``score``, 0 to 1), and whether something was cut."""

    text: str
    score: float
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Passages:
    """A text in passages (``parts``), and the words of each (``terms``): found once, for all that counts them."""

    text: str
    parts: tuple[str, ...]
    terms: tuple[list[str], ...]

    @classmethod
    def of(cls, text: str) -> Passages:
        """Those of ``text``."""
        parts = tuple(passages_of(text))
        return cls(text, parts, tuple(map(terms_of, parts)))


def scores_of(question: str, texts: Sequence[str]) -> list[float]:
    """How well each of ``texts`` answers to ``question``, from 0 to 1; all 0 where the question has no telling word."""
    return _scores(question, list(map(terms_of, texts)))


def _scores(question: str, corpus: Sequence[list[str]]) -> list[float]:
    asked = {term: None for term in terms_of(question) if term not in _STOP_WORDS}
    if not asked:
        return [0.0] * len(corpus)
    # Words that were not asked for are all one here: they count for the length alone, and BM25L would weigh each of them.
    telling = [[term if term in asked else "" for term in terms if term not in _STOP_WORDS] for terms in corpus]
    # With a delta of 0 BM25L is BM25 whose IDF is never negative, so that a common word does not count against a text.
    scores = BM25L([*telling, list(asked)], delta=0).get_scores(asked).tolist()
    best = scores.pop()
    return [min(1.0, score / best) for score in scores]


def excerpt(question: str, passages: Passages, max_tokens: int | None = None) -> Excerpt:
    """The passages that answer ``question`` best, in the order of the text, within ``max_tokens`` (see below).

    The page is as relevant as its best passage, of which the beginning is kept where no passage fits. Without a limit, or where
    it is kept, the text stays as it is.
    """
    scores = _scores(question, passages.terms)
    score = max(scores, default=0.0)
    if max_tokens is None or estimate_tokens(passages.text) <= max_tokens:
        return Excerpt(passages.text, score, is_cut=False)
    kept: list[int] = []
    num_left = max_tokens
    best_first = sorted(range(len(scores)), key=lambda each: -scores[each])
    for i in best_first:
        num_tokens = estimate_tokens(passages.parts[i] + _GAP)
        if num_tokens <= num_left and (scores[i] or not score):  # no filling up with what says nothing
            kept.append(i)
            num_left -= num_tokens
    if best_first and not kept:
        return Excerpt(_beginning_of(passages.parts[best_first[0]], max_tokens), score, is_cut=True)
    return Excerpt(_join(passages.parts, sorted(kept)), score, is_cut=True)


def passages_of(text: str) -> Iterator[str]:
    """``text`` in stretches of up to 800 characters that end at a line, or else a sentence, where there is one."""
    passage = ""
    for piece in _pieces(text):
        if passage and len(passage) + len(piece) > _PASSAGE_CHARS:
            yield passage.rstrip()
            passage = ""
        passage += piece
    if passage.strip():
        yield passage.rstrip()


def estimate_tokens(text: str) -> int:
    """About how many tokens ``text`` has: one for four ASCII characters, or for one other. The prompt counts exactly, later."""
    num_ascii = len(text.encode("ascii", "ignore"))
    return -(-num_ascii // 4) + len(text) - num_ascii


def terms_of(text: str) -> list[str]:
    """The words of ``text`` in lower case; of scripts without spaces each character."""
    return _TERM.findall(text.lower())


def _pieces(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        for sentence in [line] if len(line) <= _PASSAGE_CHARS else _SENTENCE.findall(line):
            yield from [sentence] if len(sentence) <= _PASSAGE_CHARS else _STRETCH.findall(sentence)


def _beginning_of(text: str, max_tokens: int) -> str:
    text = text.lstrip()
    lengths = range(len(text) + 1)
    return text[: bisect_right(lengths, max_tokens, key=lambda length: estimate_tokens(text[:length])) - 1]


def _join(passages: Sequence[str], kept: Sequence[int]) -> str:
    """The kept passages, with a mark where some between them are left out."""
    text = ""
    for position, i in enumerate(kept):
        if position:
            text += "\n" if kept[position - 1] == i - 1 else _GAP
        text += passages[i]
    return text
