"""Counts the bytes that connections hold in memory, and bounds them: in all, and by address.

A connection holds what it has read of requests without an answer, and answers that its browser has
not read. Each amount is small; those of ten thousand connections are not.
"""

from collections.abc import Callable
from typing import Final

from bff.limits.client_address import address_key

_SHARES: Final = 4
"""One address may hold this part of the whole, so that it does not take the place of all others."""


class Buffers:
    """The bytes of all connections of one process.

    Args:
        limit: bytes in all.
        is_trusted: tells whether an address is a proxy's, which brings many browsers' connections.
    """

    def __init__(self, limit: int, is_trusted: Callable[[str], bool]) -> None:
        self.held = 0
        self._limit = limit
        self._is_trusted = is_trusted
        self._by_address: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether nothing more may be held."""
        return self.held >= self._limit

    def has_room(self, address: str, size: int) -> bool:
        """Whether *address* may hold *size* bytes more.

        One answer may be larger than a share, so an address that holds nothing has no share.
        """
        if self.held and self.held + size > self._limit:
            return False
        held = self._by_address.get(address_key(address), 0)
        return not held or held + size <= self._limit // _SHARES or self._is_trusted(address)

    def change(self, address: str, by: int) -> None:
        """Count bytes that *address* begins or ceases to hold."""
        key = address_key(address)
        self.held += by
        held = self._by_address.pop(key, 0) + by
        if held:
            self._by_address[key] = held


class Holding:
    """The bytes of one connection.

    Args:
        address: the address of the connection. `answer` may name the one behind a proxy.
    """

    __slots__ = ("_address", "_answer", "_buffers", "_closed", "_requests", "_unread")

    def __init__(self, buffers: Buffers, address: str) -> None:
        self._buffers = buffers
        self._address = address
        self._requests = self._answer = self._unread = 0
        self._closed = False

    def requests(self, size: int) -> bool:
        """Hold *size* bytes of requests; False, without a change, if there is no room."""
        return size == self._requests or self._hold(size, self._answer, self._unread)

    def answer(self, size: int, address: str) -> bool:
        """Hold an answer of *size* bytes that is about to be written; False as above."""
        if address != self._address:
            held = self._held
            self._buffers.change(self._address, -held)
            self._buffers.change(address, held)
            self._address = address
        return self._hold(self._requests, size, self._unread)

    def unread(self, size: int) -> bool:
        """Hold *size* written bytes, those of the answer among them; False as above."""
        return self._hold(self._requests, 0, size)

    def answered(self) -> None:
        """Release the answer: it is written, or will not be."""
        if self._answer:
            self._hold(self._requests, 0, self._unread)

    def close(self) -> None:
        """Release everything; an answer that comes later is not written."""
        self._hold(0, 0, 0)
        self._closed = True

    def _hold(self, requests: int, answer: int, unread: int) -> bool:
        """Hold these bytes and no others; False, without a change, if there is no room."""
        by = requests + answer + unread - self._held
        if self._closed:
            return True
        if by > 0 and not self._buffers.has_room(self._address, by):
            return False
        if by:
            self._buffers.change(self._address, by)
        self._requests, self._answer, self._unread = requests, answer, unread
        return True

    @property
    def _held(self) -> int:
        return self._requests + self._answer + self._unread
