"""Bounds on connections: what one may cost, and how many there may be.

`bff.config.settings` has their values. `bff.server.connection` and `bff.server.slow_readers` apply
those of one connection.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bff.limits.client_address import Network, address_key, is_trusted
from bff.server.buffers import Buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits for one connection, and for all of them."""

    head_bytes: int
    headers: int
    request_seconds: float
    """Time for a whole request, from its first byte or from the start of the connection."""
    idle_seconds: float
    """Time without a request, after which a kept connection is closed."""
    unread_seconds: float
    """Time for a slow reader: a browser that reads none of an answer loses its connection."""
    connections: int
    connections_per_address: int
    buffered_bytes: int
    """Bytes in memory of all connections: unanswered requests and unread answers."""


class ConnectionLimiter:
    """Counts open connections in all and by address.

    Args:
        trusted: networks of proxies. A proxy brings the connections of many browsers, so only the
            total bounds it.
        count: called with the reason of each connection that the gateway ends.
    """

    def __init__(
        self, bounds: Bounds, *, trusted: Sequence[Network], count: Callable[[str], None]
    ) -> None:
        self.total = 0
        self.count = count
        self._bounds = bounds
        self.trusted = trusted
        self._by_address: Counter[str] = Counter()
        self.buffers = Buffers(bounds.buffered_bytes, lambda peer: is_trusted(peer, self.trusted))

    def enter(self, peer: str) -> bool:
        """Count a connection; tell whether it may stay. Call `leave` in both cases."""
        self.total += 1
        address = address_key(peer)
        self._by_address[address] += 1
        if self.total > self._bounds.connections:
            self.count("too_many")
            return False
        if self._by_address[address] > self._bounds.connections_per_address and not is_trusted(
            peer, self.trusted
        ):
            self.count("too_many_of_address")
            return False
        return True

    def leave(self, peer: str) -> None:
        """Count a connection that ended."""
        self.total -= 1
        address = address_key(peer)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
