"""Hostile pages on their whole way: served, crawled, extracted, and put into a prompt."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import pytest

from stream2llm_rag.documents import Append, Document
from stream2llm_rag.prompt import PromptTemplate
from stream2llm_rag.retrievers.crawler import WebCrawler
from tests.retrievers.crawler.site import serve
from tests.sites import extractor

from .conftest import CHAT_TEMPLATES
from .test_injection import DELIMITERS, INJECTIONS, ORDER, QUESTION, assert_contained, folded, prompt_with

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# In HTML a marker can hide where plain text has no place for it.
_WAYS_TO_WRITE = (
    "<p>{escaped}</p>",
    "<p>{raw}</p>",
    "<pre><code>{escaped}</code></pre>",
    "<table><tr><td>{escaped}</td><td>{escaped}</td></tr></table>",
    "<p>{numeric}</p>",
    "<p>Nothing to see.</p>",  # but in the title
)
_EXTRACTORS = {"main text": extractor.REAL, "all text": extractor.QUICK}


def page(number: int, injection: str) -> str:
    text = INJECTIONS[injection].encode("utf-8", "replace").decode()
    numeric = "".join(f"&#x{ord(char):x};" for char in text)
    way = _WAYS_TO_WRITE[number % len(_WAYS_TO_WRITE)]
    body = way.format(escaped=escape(text), raw=text, numeric=numeric)
    filler = f"<p>Plasma is hot, says page {number}, and a tokamak holds it in a ring by magnetic fields.</p>"
    head = f"<head><title>{escape(text)} {number}</title></head>"
    return f"<html>{head}<body><article>{filler}{body}{filler}</article></body></html>"


@pytest.fixture(scope="module", params=_EXTRACTORS.values(), ids=_EXTRACTORS)
async def crawled(request: pytest.FixtureRequest) -> list[Document]:
    async with serve() as site:
        for number, injection in enumerate(INJECTIONS):
            site.answer(f"/{number}", page(number, injection), content_type="text/html; charset=utf-8")
        seeds = [site.url(f"/{number}") for number in range(len(INJECTIONS))]
        settings = {"max_pages": len(seeds), "num_extractors": 1, "allow_private_hosts": [site.host]}
        async with WebCrawler(seeds, extractor=request.param, **settings) as crawler:
            return [document async for delta in crawler.stream(QUESTION) for document in delta.documents]


@pytest.mark.parametrize("template_name", ["chatml", "llama3", "no_system_role", "plain_text", "one_line", "escaping"])
async def test_no_page_ends_the_context_section(
    tokenizer: PreTrainedTokenizerFast, control_ids: set[int], crawled: list[Document], template_name: str
) -> None:
    template = PromptTemplate(tokenizer, chat_template=CHAT_TEMPLATES[template_name])
    benign = prompt_with(template, Document("Plasma is hot.", "https://example.org/a"))
    assert len(crawled) >= 20
    for document in crawled:
        assert_contained(tokenizer, prompt_with(template, document), benign, control_ids)


async def test_all_of_them_together_do_not_either(
    tokenizer: PreTrainedTokenizerFast, control_ids: set[int], crawled: list[Document]
) -> None:
    prompt = PromptTemplate(tokenizer, chat_template=CHAT_TEMPLATES["chatml"]).open(QUESTION, max_prompt_tokens=100_000)
    prompt.apply(Append(tuple(crawled)))
    assert len(prompt.documents) == len(crawled)
    assert control_ids.isdisjoint(prompt.context_ids[len(prompt.prefix_ids) :])
    whole = folded(tokenizer.decode(prompt.context_ids + prompt.suffix_ids))
    counts = {delimiter: whole.count(delimiter) for delimiter in DELIMITERS}
    assert counts == {"<documents>": 1, "</documents>": 1, "<document>": len(crawled), "</document>": len(crawled)}


async def test_what_the_pages_say_reaches_the_model_as_data(crawled: list[Document]) -> None:
    assert len([document for document in crawled if folded(ORDER) in folded(f"{document.title} {document.text}")]) >= 20


async def test_the_pages_are_as_hostile_as_they_seem(
    tokenizer: PreTrainedTokenizerFast, control_ids: set[int], crawled: list[Document]
) -> None:
    """A control: as they came, many would bring a token that ends a turn, or a delimiter."""
    texts = [f"{document.title} {document.text}" for document in crawled]
    with_tokens = [text for text in texts if not control_ids.isdisjoint(tokenizer.encode(text, add_special_tokens=False))]
    with_delimiters = [text for text in texts if any(delimiter in folded(text) for delimiter in DELIMITERS)]
    assert len({*with_tokens, *with_delimiters}) >= 12
