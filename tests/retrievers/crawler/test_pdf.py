from __future__ import annotations

import io

import pytest
from pypdf import PdfWriter
from pypdf.errors import PyPdfError
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from stream2llm_rag.retrievers.crawler.pdf import read_pdf

from .conftest import crawl


def pdf(*texts: str, title: str | None = None, password: str | None = None, date: str | None = None) -> bytes:
    """A PDF with a page for each text."""
    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = DictionaryObject({NameObject("/F1"): DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})})
    for text in texts:
        page = writer.add_blank_page(width=300, height=300)
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if date is not None:
        writer.add_metadata({"/CreationDate": date})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def test_a_pdf_has_the_text_of_its_pages_and_the_title_that_it_gives():
    assert read_pdf(pdf("Hello there", "Second page", title=" A  title ")) == ("A title", "Hello there\n\nSecond page", None)
    assert read_pdf(pdf("Hello")).title is None


def test_a_pdf_has_the_date_that_it_gives_where_that_is_one():
    assert read_pdf(pdf("Hello", date="D:20230504101112Z")).date == "2023-05-04"
    assert read_pdf(pdf("Hello", date="soon")) == (None, "Hello", None)


@pytest.mark.parametrize("body", [b"", b"no pdf", pdf("Hello")[:200]])
def test_a_broken_pdf_is_an_error_of_the_page(body):
    with pytest.raises((PyPdfError, ValueError, KeyError)):
        read_pdf(body)


async def test_a_crawl_reads_pdfs_and_names_those_it_cannot_read(site, crawler_on):
    site.page("/", "good.pdf", "broken.pdf", "locked.pdf")
    site.answer("/good.pdf", pdf("Why is the sky blue", title="Sky"), content_type="application/pdf")
    site.answer("/broken.pdf", b"%PDF-1.7 and no more", content_type="application/pdf")
    site.answer("/locked.pdf", pdf("Hello", password="secret"), content_type="application/pdf")
    result = await crawl(crawler_on("/"))
    [document] = [document for document in result.documents if document.source == site.url("/good.pdf")]
    assert (document.title, document.text) == ("Sky", "Why is the sky blue")
    assert set(result.skipped) == {site.url("/broken.pdf"), site.url("/locked.pdf")}
    assert all("could not be extracted" in reason for reason in result.skipped.values())
