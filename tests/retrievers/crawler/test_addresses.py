from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.retrievers.crawler.addresses import PrivateHosts, refusal


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "169.254.169.254", "fe80::1",
        "fe80::1%eth0", "224.0.0.1", "ff02::1", "ff0e::1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "::", "100.64.0.1",
        "198.18.0.1", "192.0.2.1", "192.0.0.192", "192.88.99.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1",
        "2002:7f00:1::", "2001::1", "2001:db8::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_do_not_lead_to_the_public_internet_are_refused(address):
    assert address in refusal(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_are_not(address):
    assert refusal(address) is None


@given(st.ip_addresses(v=4))
def test_no_spelling_of_an_ipv4_address_as_ipv6_gets_through(ip: IPv4Address):
    number = int(ip)
    for base in ("::ffff:0:0", "64:ff9b::", "::"):
        assert refusal(str(IPv6Address(int(IPv6Address(base)) + number))) is not None
    assert refusal(str(IPv6Address((0x2002 << 112) + (number << 80)))) is not None


@pytest.mark.parametrize(
    ("allowed", "host", "port", "covered"),
    [
        ("localhost", "localhost", 80, True),
        ("localhost", "localhost", 8080, True),
        ("localhost", "127.0.0.1", 80, False),
        ("LocalHost:8080", "localhost", 8080, True),
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.0.0.1:8080", "127.0.0.1", 8081, False),
        ("127.0.0.1:8080", "localhost", 8080, False),
        ("::1", "::1", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[0:0::1]:8080", "::1", 8081, False),
    ],
)
def test_an_allowance_holds_for_that_name_and_port_alone(allowed, host, port, covered):
    assert PrivateHosts.parse([allowed]).cover(host, port) is covered


@pytest.mark.parametrize(
    "allowed", ["", "http://localhost", "localhost/path", "localhost:port", "me@localhost", "::zz", "h:99999"]
)
def test_what_is_no_host_is_refused(allowed):
    with pytest.raises(InvalidInputError, match="host:port"):
        PrivateHosts.parse([allowed])


def test_one_string_is_not_taken_for_its_letters():
    with pytest.raises(InvalidInputError, match=r"\['localhost'\]"):
        PrivateHosts.parse("localhost")
