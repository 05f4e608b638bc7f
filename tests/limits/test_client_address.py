"""The browser's address, and the key under which it is counted."""

from ipaddress import ip_network

import pytest

from bff.limits.client_address import address_key, browser_address


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.3.4", "::ffff:1.2.3.4", True),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
        ("1.2.3.4", "64:ff9b::1.2.3.4", True),
        ("64:ff9b::1.2.3.4", "64:ff9b::1.2.3.5", False),
        ("64:ff9b:1::1.2.3.4", "64:ff9b:1::1.2.3.5", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("local", "local", True),
        ("local", "127.0.0.1", False),
    ],
)
def test_address_key_is_the_host_or_its_network(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", [b"1.1.1.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [b"10.2.2.2, 10.3.3.3"], "10.2.2.2"),
        ("10.0.0.1", [b"1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", [b"fe80::1%" + b"x" * 60_000], "fe80::1"),
        ("::ffff:10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
        ("fd00::1", [b"2001:db8::1"], "2001:db8::1"),
        ("local", [b"198.51.100.7"], "local"),
        ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
        ("10.0.0.1", [b"6.6.6.6", *[b"10.2.2.2"] * 31], "6.6.6.6"),
        ("10.0.0.1", [*[b"6.6.6.6"] * 1000, *[b"10.2.2.2"] * 32], "10.2.2.2"),
    ],
)
def test_forwarded_addresses_count_only_from_trusted_proxies(
    peer: str, forwarded, expected: str
) -> None:
    assert browser_address(peer, forwarded, TRUSTED) == expected
