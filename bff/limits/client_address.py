"""The address of a browser, and the key under which its requests are counted.

`bff.request` reads the ``X-Forwarded-For`` header that this module interprets.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

_MAX_HOPS: Final = 32
"""Addresses of X-Forwarded-For that are read, from the right. It bounds the cost of a request."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Addresses into which a network without IPv4 translates those of IPv4 browsers (RFC 6052)."""
_IPV4_BITS: Final = 2**32 - 1

Network = IPv4Network | IPv6Network


@lru_cache(maxsize=16_384)  # not cachetools: there a hit costs 10 % more
def address_key(address: str) -> str:
    """Return the key under which an address is counted: an IPv4 address, or the /64 of an IPv6 one.

    An IPv4-mapped address (``::ffff:``) and one that NAT64 translated (``64:ff9b::``) count as
    IPv4, otherwise all of IPv4 would share one /64. A text that is not an address, such as the peer
    of a Unix socket, is its own key.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed in _NAT64:
            return str(IPv4Address(int(parsed) & _IPV4_BITS))
        if parsed.ipv4_mapped is None:
            return str(IPv6Network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def browser_address(peer: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """Return the address that sent a request: *peer*, or the one that trusted proxies report.

    Each proxy appends its peer to ``X-Forwarded-For``. From the right, the first address that is
    not a trusted proxy's is the browser's; the browser can invent everything left of it.

    Args:
        peer: the other end of the connection.
        forwarded: the values of ``X-Forwarded-For``, in order.
        trusted: the networks of the trusted proxies.
    """
    if not forwarded or not trusted or not is_trusted(peer, trusted):
        return peer
    address = peer
    hops = b",".join(forwarded).decode("latin-1").rsplit(",", _MAX_HOPS)
    for hop in reversed(hops):
        candidate = _without_port(hop.strip()).partition("%")[0]  # a zone can have any length
        try:
            ip_address(candidate)
        except ValueError:
            break
        address = candidate
        if not is_trusted(address, trusted):
            break
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether *address*, IPv4-mapped or not, is in one of the *trusted* networks."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in trusted)


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, _ = hop.partition(":")
    return host if colon and hop.count(":") == 1 else hop
