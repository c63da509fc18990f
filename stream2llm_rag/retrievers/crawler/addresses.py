"""Which network addresses a crawl may connect to. Pure: knows numbers and names, opens nothing.

A crawler follows links that strangers wrote, so it must not be talked into reading what only this machine can reach
(server-side request forgery, OWASP SSRF). A name says nothing about where it leads; the address of each connection does.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from stream2llm_rag.errors import InvalidInputError

# Ranges that ``ipaddress`` calls global although they lead inside, or to any IPv4 address that the sender likes.
_MISLEADING = tuple(
    ip_network(network)
    for network in (
        "64:ff9b::/96",  # RFC 6052, NAT64: an IPv4 address in disguise
        "64:ff9b:1::/48",  # RFC 8215, NAT64 for local use
        "2002::/16",  # RFC 3056, 6to4: the same
        "192.88.99.0/24",  # RFC 7526, 6to4 relays, withdrawn
        "192.0.0.192/32",  # metadata service of Oracle's cloud
        "168.63.129.16/32",  # the host beneath a virtual machine of Azure's cloud
        "fec0::/10",  # RFC 3879, site-local, withdrawn
        "3fff::/20",  # RFC 9637, for documentation
    )
)

# RFC 6762 (appendix G) lists those that networks use inside; ".svc" is what clusters call their services.
_LOCAL_SUFFIXES = (
    *(".localhost", ".local", ".localdomain", ".internal", ".intranet", ".private", ".corp", ".home", ".home.arpa", ".lan"),
    *(".alt", ".svc"),
)


def refusal(address: str) -> str | None:
    """Why a connection to this IP address is refused; None where it leads to the public internet."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return f"{address} is an IPv4 address written as IPv6"
    for name, holds in (
        ("loopback", ip.is_loopback),
        ("link-local", ip.is_link_local),
        ("multicast", ip.is_multicast),
        ("unspecified", ip.is_unspecified),
        ("reserved", ip.is_reserved),
        ("translated or otherwise misleading", any(ip in network for network in _MISLEADING)),
        ("private", not ip.is_global),
    ):
        if holds:
            return f"{address} is a {name} address"
    return None


def written_refusal(host: str) -> str | None:
    """Why a host is refused for how it is written alone; None where only its address could tell.

    For hosts that somebody else resolves. IPv4 in every spelling that ``inet_aton`` takes counts as the address that it is, and
    names for this machine or for what is inside a network (RFC 6761, RFC 6762, RFC 9476 and ICANN's ``.internal``) as private.
    """
    if (address := _address_written(host)) is not None:
        return refusal(address)
    name = host.rstrip(".").lower()
    if "." not in name or name.endswith(_LOCAL_SUFFIXES):
        return f"{host} is a name for inside a network"
    return None


def _address_written(host: str) -> str | None:
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class PrivateHosts:
    """Hosts that may be reached wherever their name leads, as the caller named them.

    ``names`` holds ``(host, port)``; a port of None stands for every port. An allowance is for that name alone: another name
    with the same address is not covered.
    """

    names: frozenset[tuple[str, int | None]] = frozenset()

    @classmethod
    def parse(cls, allowed: Iterable[str], name: str = "allow_private_hosts") -> PrivateHosts:
        """Read ``host`` or ``host:port`` (IPv6: ``::1`` or ``[::1]:8080``). InvalidInputError for anything else.

        ``name`` is what the caller calls it.
        """
        if isinstance(allowed, str):
            raise InvalidInputError(f"{name} is a collection of hosts, not one string. Write: [{allowed!r}]")
        return cls(frozenset(_parse_host(text, name) for text in allowed))

    def cover(self, host: str, port: int) -> bool:
        """Whether a connection to this host, as the URL names it, may lead to a private address."""
        return (host, port) in self.names or (host, None) in self.names


def _parse_host(text: str, name: str) -> tuple[str, int | None]:
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.netloc != text or parts.username is not None:
        raise InvalidInputError(f"{name} got {text!r}. Write a host or host:port, such as '127.0.0.1:8080'.")
    return (str(ip_address(host)) if ":" in host else host), port
