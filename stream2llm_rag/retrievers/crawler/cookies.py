"""Cookies that a user gives a crawler, and those that sites set during a crawl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from http.cookies import CookieError, SimpleCookie
from typing import TypeAlias

import aiohttp
from yarl import URL

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler.urls import CanonicalUrl, parse_seed

GivenCookies: TypeAlias = Mapping[str, Mapping[str, str]]
"""The URL of a site (``https://docs.example.com/``) -> name -> value."""

_SECURE_PREFIXES = ("__secure-", "__host-")  # RFC 6265bis, 4.1.3
_NOT_IN_A_VALUE = frozenset(' ",;\\')  # RFC 6265, 4.1.1


class CookieJar:
    """The cookies of one crawl: those that were given, and what sites set on top, which ends with the crawl.

    aiohttp's jar holds them to their path, their expiry and, where they ask for it, to https, and bounds them per host and in
    all. A cookie goes back to the host that set it and to no other, whatever ``Domain`` it claims: so no list of public
    suffixes is needed, and no site can plant one on its neighbours. What comes in clear cannot touch a cookie that is for https
    alone. Made on the event loop of its crawl.
    """

    def __init__(self, given: GivenCookies) -> None:
        self._jar = aiohttp.CookieJar(unsafe=True, quote_cookie=False)  # unsafe: hosts may be IP addresses
        for url, cookies in _parsed(given):
            self._jar.update_cookies(cookies, URL(url, encoded=True))

    def header_for(self, url: CanonicalUrl) -> str | None:
        """The Cookie header of a request; None for none."""
        cookies = self._jar.filter_cookies(URL(url, encoded=True))
        return "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items()) or None

    def learn(self, response: aiohttp.ClientResponse) -> None:
        """Take what a site set; in clear, no cookie that is for https, and none of the name of one (RFC 6265bis, 5.7).

        Nor one whose name promises that it is for https alone, where it is not.
        """
        is_clear = response.url.scheme != "https"
        secure_names = self._secure_names(response.url.raw_host) if is_clear else set()
        taken = SimpleCookie()
        for name, morsel in response.cookies.items():
            if is_clear and (morsel["secure"] or name in secure_names):
                continue
            if name.lower().startswith(_SECURE_PREFIXES) and (is_clear or not morsel["secure"]):
                continue
            morsel["domain"] = ""
            taken[name] = morsel
        self._jar.update_cookies(taken, response.url)

    def _secure_names(self, host: str | None) -> set[str]:
        return {morsel.key for morsel in self._jar if morsel["secure"] and morsel["domain"] == host}


def require_cookies(given: GivenCookies | None) -> None:
    """InvalidInputError says what in ``given`` is no cookie, but not its value."""
    if given is not None:
        if not isinstance(given, Mapping) or not all(isinstance(cookies, Mapping) for cookies in given.values()):
            raise InvalidInputError("cookies maps the URL of a site to names and values: {'https://host/': {'name': 'value'}}.")
        list(_parsed(given))


def fingerprint(given: GivenCookies | None, *further: str) -> str:
    """A word that tells one set of given cookies, and what else there is, from another, and not what they are."""
    named = sorted((url, sorted(cookies.items())) for url, cookies in (given or {}).items())
    return blake2b(json.dumps([named, *further]).encode(), digest_size=16).hexdigest()


def _parsed(given: GivenCookies) -> Iterator[tuple[CanonicalUrl, SimpleCookie]]:
    for site, cookies in given.items():
        url, jar = parse_seed(site), SimpleCookie()
        for name, value in cookies.items():
            if not isinstance(value, str) or not value.isascii() or not value.isprintable() or _NOT_IN_A_VALUE & set(value):
                raise InvalidInputError(f"The cookie {name!r} of {site!r} has a value that no cookie can have (RFC 6265).")
            try:
                jar[name] = value
            except (CookieError, TypeError) as error:
                raise InvalidInputError(f"{name!r}, for {site!r}, is no name of a cookie (RFC 6265).") from error
            jar[name]["path"] = "/"
            jar[name]["secure"] = url.startswith("https:")
        yield url, jar
