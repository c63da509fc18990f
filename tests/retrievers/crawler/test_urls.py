from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from w3lib.url import canonicalize_url

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler.urls import (
    MAX_URL_LENGTH,
    Scope,
    canonicalize,
    host_and_port,
    key_of,
    origin_of,
    parse_seed,
    path_of,
    site_of,
    strip_tracking,
)

SEGMENTS = st.text(st.characters(codec="utf-8", exclude_characters="/?#\\", exclude_categories=("Cc", "Cs", "Z")), max_size=8)
URLS = st.builds(
    "{}://{}{}/{}?{}#{}".format,
    st.sampled_from(["http", "HTTPS"]),
    st.sampled_from(["Example.com", "a.b-c.org", "127.0.0.1", "[::1]", "bücher.de"]),
    st.sampled_from(["", ":80", ":443", ":8080", ":"]),
    st.lists(st.one_of(SEGMENTS, st.sampled_from([".", "..", "%2e%2E", "%7e", "a%2fb", ""])), max_size=5).map("/".join),
    st.lists(st.tuples(SEGMENTS, SEGMENTS).map("=".join), max_size=4).map("&".join),
    SEGMENTS,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://h", "http://h/"),
        ("HTTP://H/a", "http://h/a"),
        ("http://h:80/a", "http://h/a"),
        ("http://h.example.:80/a", "http://h.example/a"),
        ("https://h:443/a", "https://h/a"),
        ("http://h/a#part", "http://h/a"),
        ("http://h/a/../b/./c", "http://h/b/c"),
        ("http://h/%7euser/%c3%bc", "http://h/~user/ü"),
        ("http://h/?x=%7e%c3%bc", "http://h/?x=~ü"),
        ("http://h/?x=a b", "http://h/?x=a%20b"),
        ("http://h/a?", "http://h/a"),
        ("http://[0:0::1]/", "http://[::1]/"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/"),
        (" http://h/a\n", "http://h/a"),
    ],
)
def test_spellings_of_one_url_have_one_canonical_form(one, other):
    assert canonicalize(one) == canonicalize(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://h/a", "https://h/a"),
        ("http://h/a", "http://h/A"),
        ("http://h/a", "http://h/a/"),
        ("http://h/a?x", "http://h/a"),
        ("http://h:8080/", "http://h/"),
        ("http://h:443/", "http://h/"),
        ("http://h/a%2Fb", "http://h/a/b"),
        ("http://h/?b=2&a=1", "http://h/?a=1&b=2"),
    ],
)
def test_different_urls_stay_different(one, other):
    assert canonicalize(one) != canonicalize(other)


@pytest.mark.parametrize(
    "query", ["s=1&c=2", "r=/a/b", "a=1;b=2", "x", "b=&a", "t=Special:All", "a=b=c", "a+b=c%2Bd%20e", "&a=1&&"]
)
def test_a_query_is_asked_for_as_the_site_wrote_it(query):
    """Else a rule of its robots.txt, or a deny pattern, would not find what it is about."""
    assert canonicalize(f"http://h/p?{query}") == f"http://h/p?{query}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://h/?b=2&a=1", "http://h/?a=1&b=2"),
        ("http://h/?x", "http://h/?x="),
        ("http://h/?x=a+b", "http://h/?x=a%20b"),
        ("http://h/?r=/a", "http://h/?r=%2Fa"),
        ("http://h/?a=1&&utm_source=x", "http://h/?a=1"),
    ],
)
def test_queries_that_say_the_same_stand_for_one_page(one, other):
    assert key_of(canonicalize(one)) == key_of(canonicalize(other))
    assert key_of(canonicalize(one)) != key_of(canonicalize("http://h/"))


@given(URLS)
def test_canonicalising_twice_changes_nothing_more(url):
    once = canonicalize(url)
    assert once is not None
    assert origin_of(once) + path_of(once) == once
    assert origin_of(once).rpartition("/")[2] == site_of(once) == urlsplit(once).netloc
    assert canonicalize(once) == once
    stripped = strip_tracking(once)
    assert strip_tracking(stripped) == stripped == canonicalize(stripped)
    assert key_of(once) == key_of(stripped) == key_of(key_of(once))


@given(st.text("ab=&%2F+-~/", max_size=12).map("http://h/p?".__add__))
def test_the_quick_way_to_a_key_leads_where_the_long_one_does(url):
    once = canonicalize(url)
    assert key_of(once) == canonicalize_url(strip_tracking(once))


@given(URLS | st.text("htps:/?#a.@%2").map("http:/".__add__), st.sampled_from(["http://base/a/b", "https://base"]))
def test_what_is_absolute_already_is_joined_to_nothing(url, base):
    assert canonicalize(url, base=base) == canonicalize(urljoin(base, url.strip()))


@given(st.text(max_size=60), st.sampled_from(["", "http://h/a/b"]))
def test_no_text_makes_it_fail(text, base):
    url = canonicalize(text, base=base)
    assert url is None or url.startswith(("http://", "https://"))


@pytest.mark.parametrize(
    "url",
    [
        "mailto:a@b", "file:///etc/passwd", "javascript:alert(1)", "data:text/html,x", "http://", "http:///x", "//h/x", "x",
        "http://user:secret@h/", "http://user@h/", "http://h:99999/", "http://h:x/", "http://[::1/", "http://a b/", "http://h<x>/",
        "http://h/" + "a" * MAX_URL_LENGTH,
    ],
)  # fmt: skip
def test_what_cannot_be_fetched_has_no_canonical_form(url):
    assert canonicalize(url) is None


def test_links_are_resolved_against_their_page():
    assert canonicalize("../c?q=1#x", base="http://h/a/b") == "http://h/c?q=1"
    assert canonicalize("//other/x", base="https://h/") == "https://other/x"


@pytest.mark.parametrize(
    ("url", "stripped"),
    [
        ("http://h/a?utm_source=x&utm_medium=y", "http://h/a"),
        ("http://h/a?gclid=1&page=2", "http://h/a?page=2"),
        ("http://h/a?b=&a", "http://h/a?b=&a"),
        ("http://h/a?x=1&x=2", "http://h/a?x=1&x=2"),
    ],
)
def test_tracking_is_stripped_and_nothing_else(url, stripped):
    assert strip_tracking(canonicalize(url)) == stripped


def test_origin_host_and_port():
    assert origin_of("https://h:8443/a") == "https://h:8443"
    assert host_and_port("https://h/a") == ("h", 443)
    assert host_and_port("http://[::1]:81/") == ("::1", 81)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("", "must be a URL"),
        (None, "must be a URL"),
        ("docs.python.org", "scheme ''"),
        ("ftp://h/x", "scheme 'ftp'"),
        ("http:///x", "no host"),
        ("http://u:p@h/", "credentials"),
        ("http://[::1/", "no URL"),
    ],
)
def test_a_bad_seed_says_what_is_wrong_with_it(seed, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_seed(seed)


@pytest.mark.parametrize(
    ("kind", "url", "inside"),
    [
        ("host", "http://h/other", True),
        ("host", "https://h/other", True),
        ("host", "http://h:81/", False),
        ("host", "http://sub.h/", False),
        ("prefix", "http://h/docs/x", True),
        ("prefix", "http://h/docs/", True),
        ("prefix", "http://h/docs2", False),
        ("prefix", "http://h/docs", False),
        ("any", "http://elsewhere/", True),
    ],
)
def test_the_scope_is_that_of_the_seeds(kind, url, inside):
    scope = Scope.parse(kind, [canonicalize("http://h/docs/index.html")])
    assert (scope.refusal(canonicalize(url)) is None) is inside


def test_allow_and_deny_narrow_the_scope():
    scope = Scope.parse("any", [], allow=[r"/docs/", r"\.md$"], deny=[r"/old/"])
    assert scope.refusal("http://h/docs/a") is None
    assert scope.refusal("http://h/a.md") is None
    assert "allow" in scope.refusal("http://h/a")
    assert "'/old/'" in scope.refusal("http://h/docs/old/a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"allow": ["("]}, "regular expression"), ({"deny": "x"}, r"\['x'\]"), ({"kind": "site"}, "'host', 'prefix' or 'any'")],
)
def test_a_scope_that_means_nothing_is_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        Scope.parse(**{"kind": "host", "seeds": [], **settings})
