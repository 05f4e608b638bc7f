"""A connection to upstream without a socket: a test is the other end."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore2

from bff.errors import UpstreamError
from bff.upstream.connection import Answer, Connection


class Reader:
    """Notes what a stream hands over."""

    def __init__(self) -> None:
        self._received = bytearray()
        self.sizes: list[int] = []
        self.ends: list[UpstreamError | None] = []

    @property
    def received(self) -> bytes:
        return bytes(self._received)

    def receive(self, data: bytes) -> None:
        self._received += data
        self.sizes.append(len(data))

    def ended(self, error: UpstreamError | None) -> None:
        self.ends.append(error)


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
        """Let the connection read *data*, unless it has ended; no loop delivers an empty read."""
        if data and not self.aborted:
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


@dataclass(frozen=True)
class Outcome:
    """A client's reading of the bytes of one connection; no status if it refuses them."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


REFUSED = Outcome()


async def ours(reads: Sequence[bytes]) -> Outcome:
    """Return what `Connection` makes of *reads*, after which the other side closes."""
    connection, transport = connected()
    future = connection.send(b"GET / HTTP/1.1\r\n\r\n")
    for data in reads:
        transport.deliver(data)
    transport.end()
    try:
        answer = await future
    except UpstreamError:
        return REFUSED
    assert isinstance(answer, Answer)
    return Outcome(answer.status, _normal(answer.headers.items()), answer.body)


def _normal(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Sort *headers* and keep the last of a name. httpx2 writes codings in lower case."""
    lower = ((n, v.lower() if n == "transfer-encoding" else v) for n, v in headers)
    return tuple(sorted(dict(lower).items()))


class _Backend(httpcore2.AsyncNetworkBackend):
    """Lets httpcore2 read what it is given; its own mock ends at an empty read."""

    def __init__(self, reads: Sequence[bytes]) -> None:
        self._reads = [data for data in reads if data]

    async def connect_tcp(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        return httpcore2.AsyncMockStream(self._reads)


async def theirs(reads: Sequence[bytes]) -> Outcome:
    """Return what httpx2's engine makes of them."""
    async with httpcore2.AsyncConnectionPool(network_backend=_Backend(reads)) as pool:
        try:
            response = await pool.request("GET", "http://up/")
        except (httpcore2.ProtocolError, httpcore2.NetworkError):
            return REFUSED
    headers = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in response.headers]
    return Outcome(response.status, _normal(headers), response.content)
