"""The address of a browser, and the key under which it is counted."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

_MAX_HOPS = 32
"""More trusted proxies in a row than anyone has; what stands left of them is not even split."""
Network = IPv4Network | IPv6Network


@lru_cache(maxsize=16_384)
def address_key(address: str) -> str:
    """The key under which an address is counted: an IPv4 address, or the /64 of an IPv6 one.

    ``::ffff:`` is unmapped, or all of IPv4 would be one /64. What is not an address (a socket
    file's peer) stands for itself.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(IPv6Network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)


def browser_address(peer: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """The address a request came from: *peer*, or what trusted proxies say of it.

    *forwarded* holds the ``X-Forwarded-For`` values in order. Each proxy appends the peer it saw,
    so from the right, the first address that is not a trusted proxy's is the browser's; what
    stands left of it is the browser's own invention.
    """
    if not forwarded or not trusted or not is_trusted(peer, trusted):
        return peer
    address = peer
    hops = b",".join(forwarded).decode("latin-1").rsplit(",", _MAX_HOPS)
    for hop in reversed(hops):
        candidate = _without_port(hop.strip())
        try:
            ip_address(candidate)
        except ValueError:
            break
        address = candidate
        if not is_trusted(address, trusted):
            break
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether *address* is in one of the *trusted* networks; ``::ffff:`` is unmapped."""
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
