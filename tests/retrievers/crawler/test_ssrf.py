"""A page full of links that try to reach inside the network: by every spelling of an address, by name, and by redirect."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

from stream2llm_rag.retrievers.crawler.urls import canonicalize

from .conftest import crawl

INSIDE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254", "169.254.170.2",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
]  # fmt: skip
NAMES = {
    "localhost": "127.0.0.1",
    "LOCALHOST": "127.0.0.1",
    "localhost.": "127.0.0.1",
    "sub.localhost": "127.0.0.1",
    "rebound.example": "127.0.0.1",
    "metadata.google.internal": "169.254.169.254",
    "169.254.169.254.nip.io": "169.254.169.254",
    "six.example": "::1",
    "mapped.example": "::ffff:127.0.0.1",
    "nat64.example": "64:ff9b::7f00:1",
    "unique-local.example": "fd00:ec2::254",
    "link-local.example": "fe80::1",
}


def spellings(address: str) -> list[str]:
    """Hosts that some parser, resolver or translator takes for this IPv4 address."""
    number = int(IPv4Address(address))
    parts = address.split(".")
    embedded = (("::", number), ("::ffff:0:0", number), ("64:ff9b::", number), ("2002::", number << 80))
    return [
        address,
        f"{address}.",
        str(number),
        hex(number),
        f"0{number:o}",
        ".".join(hex(int(part)) for part in parts),
        ".".join(f"0{int(part):o}" for part in parts),
        f"{parts[0]}.{number & 0xFFFFFF}",
        "".join(chr(ord(char) + 0xFEE0) if char.isdigit() else char for char in address),  # fullwidth digits
        address.replace(".", "\u3002"),  # the ideographic full stop, a dot in names (UTS 46)
        *(f"[{IPv6Address(int(IPv6Address(base)) | bits)}]" for base, bits in embedded),
    ]


def vectors(port: int) -> list[str]:
    hosts = [host for address in INSIDE for host in spellings(address)]
    hosts += [
        *NAMES,
        "[::]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fec0::1]",
        "[ff02::1]",
    ]
    urls = [f"http://{host}:{port}/" for host in hosts]
    urls += [
        f"http://public.example@127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}#@public.example/",
        f"http:\\\\127.0.0.1:{port}\\",
    ]
    urls += [
        "file:///etc/passwd",
        f"gopher://127.0.0.1:{port}/_GET",
        f"ftp://127.0.0.1:{port}/",
        f"dict://127.0.0.1:{port}/",
        "data:,x",
    ]
    return urls


def resolve(host, port, *_args, **_kwargs):
    if isinstance(host, bytes):
        host = host.decode()
    address = NAMES.get(host) or NAMES.get(host.rstrip(".")) or host.rstrip(".")
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        socket.inet_pton(family, address)
    except OSError:
        try:
            address = socket.inet_ntoa(socket.inet_aton(address))  # as a lenient resolver does
        except OSError as error:
            raise socket.gaierror(f"no such host: {host}") from error
    sockaddr = (address, port) if family == socket.AF_INET else (address, port, 0, 0)
    return [(family, socket.SOCK_STREAM, 6, "", sockaddr)]


async def test_no_link_and_no_redirect_reaches_inside(site, other_site, crawler_on, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", resolve)
    links = vectors(other_site.port)
    assert len(links) > 200
    for i, link in enumerate(links):
        site.redirect(f"/redirect-{i}", link.encode("ascii", "xmlcharrefreplace").decode())
    anchors = "".join(f'<a href="{link}">inside</a><a href="/redirect-{i}">out</a>' for i, link in enumerate(links))
    site.answer("/", f"<p>Start.</p>{anchors}", content_type="text/html; charset=utf-8")
    result = await crawl(crawler_on("/", scope="any", obey_robots=False, max_pages=1_000, per_host_concurrency=8))
    assert result.sources == [site.url("/")]
    assert other_site.requests == []
    assert other_site.connections == set()
    met = {url for link in links if (url := canonicalize(link)) is not None}
    assert len(met) > 150
    assert met - set(result.skipped) == set()  # every one that can be asked for at all was tried, and refused
