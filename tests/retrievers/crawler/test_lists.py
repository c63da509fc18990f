from __future__ import annotations

import gzip

import pytest

from stream2llm_rag.retrievers.crawler import lists
from stream2llm_rag.retrievers.crawler.extract import outline_of
from stream2llm_rag.retrievers.crawler.lists import entries_of
from stream2llm_rag.retrievers.crawler.pages import Page

URL = "http://h/a/list.xml"
SITEMAP = """<?xml version="1.0" encoding="UTF-8"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
<url><loc> http://h/one?utm_source=x </loc><priority>0.5</priority></url><url><loc>/two</loc></url><url><loc>/two</loc></url>
<url><loc>ftp://h/</loc></url><url/></urlset>"""
INDEX = '<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><sitemap><loc>http://h/1.xml</loc></sitemap></sitemapindex>'
RSS = """<rss version="2.0"><channel><link>http://h/</link><item><title>On tasks</title><link>http://h/tasks</link>
<description>How to cancel</description></item></channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><link href="http://h/"/><entry><title>On tasks</title>
<link rel="edit" href="http://h/edit"/><link href="http://h/tasks"/><summary>How to cancel</summary></entry></feed>"""


def entries(body: str | bytes) -> dict[str, list[str]]:
    return entries_of(Page(URL, "application/xml", body.encode() if isinstance(body, str) else body))


def test_a_sitemap_lists_its_pages_once_each():
    assert entries(SITEMAP) == {"http://h/one": [], "http://h/two": []}
    assert entries(gzip.compress(SITEMAP.encode())) == entries(SITEMAP)


def test_an_index_lists_its_sitemaps():
    assert list(entries(INDEX)) == ["http://h/1.xml"]


@pytest.mark.parametrize("feed", [RSS, ATOM])
def test_a_feed_lists_its_entries_with_what_it_says_of_them(feed):
    assert entries(feed) == {"http://h/tasks": ["On tasks", "How to cancel"]}


@pytest.mark.parametrize("body", [b"", b"\0", b"<", b"no markup", SITEMAP[:150], gzip.compress(SITEMAP.encode())[:20]])
def test_what_is_broken_lists_what_can_be_read(body):
    assert set(entries(body)) <= {"http://h/one", "http://h/two"}


def test_entities_are_neither_expanded_nor_loaded(tmp_path):
    (tmp_path / "secret").write_text("http://h/secret")
    doctype = f'<!DOCTYPE x [<!ENTITY file SYSTEM "{(tmp_path / "secret").as_uri()}"><!ENTITY own "http://h/own">]>'
    assert entries(f"{doctype}<urlset><url><loc>&file;</loc></url><url><loc>&own;</loc></url></urlset>") == {}


def test_a_packed_list_is_unpacked_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(lists, "_MAX_UNPACKED_BYTES", 1_000)
    body = "<urlset>" + "".join(f"<url><loc>http://h/{i}</loc></url>" for i in range(5_000)) + "</urlset>"
    assert 0 < len(entries(gzip.compress(body.encode()))) < 40


def test_the_entries_that_answer_the_question_come_first():
    outline = outline_of(Page(URL, "text/xml", SITEMAP.encode()), "", "What is two?")
    assert [link.url for link in outline.links] == ["http://h/two", "http://h/one"]
    assert outline.links[0].score > outline.links[1].score == 0
