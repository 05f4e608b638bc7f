"""A connection to upstream without a socket: a test is the other end."""

import asyncio
from typing import Any

from bff.upstream.connection import Connection


class MemoryTransport(asyncio.Transport):
    """The transport of one `Connection`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False
        self._connection = connection
        self._reading = True
        connection.connection_made(self)

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def is_reading(self) -> bool:
        return self._reading and not self.aborted

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def deliver(self, data: bytes) -> None:
        """Let the connection read *data*, unless it has ended."""
        if not self.aborted:
            self._connection.data_received(data)

    def end(self, error: Exception | None = None) -> None:
        """End the connection from the other side."""
        if not self.aborted:
            self.aborted = True
            if error is None:
                self._connection.eof_received()
            self._connection.connection_lost(error)


def connected() -> tuple[Connection, MemoryTransport]:
    """Return a connection and its transport."""
    connection = Connection(ends_at=float("inf"), on_end=lambda _: None)
    return connection, MemoryTransport(connection)
