"""Bodies that are hard to read: charsets, markup, other types, and pages that break the extractor."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from aiohttp import web

from tests.sites.traps.answers import COMES, Answer, body_of, html_of, noise, noise_of, plain

_WORD = "Straße"  # to be found in the text of pages whose charset can be known


def charsets() -> Iterator[tuple[str, str, Answer]]:
    def text(request: web.Request) -> str:
        return f"<html><body><p>{_WORD} {request.path}</p></body></html>"

    utf_16 = "text/html;charset=utf-16be"

    def encoded(charset: str, head: str = "") -> Callable[[web.Request], bytes]:
        return lambda request: text(request).replace("<body>", f"<head>{head}</head><body>").encode(charset)

    yield "charset-missing", f"{COMES} with {_WORD}", body_of(encoded("utf-8"))
    yield "charset-missing-latin", f"{COMES} with {_WORD}", body_of(encoded("cp1252"))
    yield "charset-in-meta", f"{COMES} with {_WORD}", body_of(encoded("cp1252", '<meta charset="cp1252">'))
    yield "charset-not-in-meta", f"{COMES} with {_WORD}", body_of(encoded("utf-16-be", '<meta charset="utf-8">'), utf_16)
    yield "charset-bom", f"{COMES} with {_WORD}", body_of(encoded("utf-16"), "text/html; charset=iso-8859-1")
    yield "charset-unknown", f"{COMES} with {_WORD}", body_of(encoded("utf-8"), "text/html; charset=utf-42")
    yield "charset-nonsense", f"{COMES} with {_WORD}", body_of(encoded("utf-8"), 'text/html; charset="; ;;=\x80\xff')
    yield "charset-wrong-utf-8", COMES, body_of(encoded("cp1252"), "text/html; charset=utf-8")
    yield "charset-wrong-ascii", COMES, body_of(encoded("utf-8"), "text/html; charset=us-ascii")
    yield "charset-wrong-utf-16", f"{COMES}|it has no text", body_of(encoded("utf-8"), "text/html; charset=utf-16")


def markup() -> Iterator[tuple[str, str, Answer]]:
    def of(*more: str) -> Answer:
        return body_of(lambda request: html_of(request, *more))

    laughs = (
        '<!DOCTYPE html [<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)) + "]>"
    )
    yield "markup-unclosed", COMES, of("<div><table><tr><td><b><i><p>x" * 50)
    yield "markup-deep", f"{COMES}|not extracted within|could not be extracted", of("<div>" * 50_000)
    yield "markup-crossed", COMES, of("<b><i></b></i><p></div></table></td>" * 1_000)
    yield "markup-nulls", COMES, of("\0" * 1_000, "<p\0>x</p\0>")
    yield "markup-long-attribute", COMES, of(f'<p title="{"x" * 500_000}">x</p>')
    yield "markup-open-comment", COMES, of("<!-- " + "x" * 10_000)
    yield "markup-open-script", COMES, of("<script>" + "x" * 10_000)
    yield "markup-many-links", COMES, of(*(f'<a href="#{i}">x</a><a href="javascript:{i}">y</a>' for i in range(5_000)))
    yield "markup-odd-base", COMES, of('<base href="javascript:alert(1)"><a href="[">x</a><a href="http://[::1">y</a>')
    yield "markup-controls", COMES, body_of(lambda request: html_of(request) + bytes(range(256)) * 100)
    yield "markup-laughs", COMES, body_of(lambda request: laughs.encode() + html_of(request, "&a11;"), "application/xhtml+xml")
    yield (
        "markup-random",
        f"{COMES}|could not be extracted",
        body_of(lambda request: noise(100_000, zlib.crc32(request.path.encode()))),
    )


def pages() -> Iterator[tuple[str, str, Answer]]:
    twin = body_of(lambda _: b"<p>The same text at every address.</p>")

    async def maze(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=html_of(request, *(f'<a href="{request.path}/{turn}">on</a>' for turn in "ab")), content_type="text/html"
        )

    yield "extractor-crashes", "was killed by SIGSEGV", plain
    yield "extractor-exits", "ended with exit code 3", plain
    yield "extractor-hangs", "its text was not extracted within", plain
    yield "extractor-raises", "RuntimeError.'no idea what this is'", plain
    yield "extractor-is-greedy", "MemoryError", plain
    yield "picture", "its content type is image/png, which is not text", body_of(noise_of, "image/png")
    yield "no-type", "its content type is", body_of(html_of, "application/octet-stream")
    yield "not-a-pdf", "could not be extracted|it has no text", body_of(noise_of, "application/pdf")
    yield "empty", "it has no text", body_of(lambda _: b"")
    yield "twins", f"{COMES}|it has the same text as", twin
    yield "maze", COMES, maze
