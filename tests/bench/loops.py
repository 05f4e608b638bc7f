"""Servers that do no part of the job, on the event loop alone: the cost of the kernel and the loop.

python loops.py answer PORT
python loops.py push PORT
python loops.py relay PORT ORIGIN
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import uvloop

BODY = Path(__file__).with_name("body.json").read_bytes()


class Answer(asyncio.Protocol):
    """Writes as many bytes as a hit."""

    _answer = b"HTTP/1.1 200 OK\r\nx: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        b"x" * 800,
        len(BODY),
        BODY,
    )

    # uvloop's transports are not instances of asyncio's classes.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, _: bytes) -> None:
        self._transport.write(self._answer)


class Push(asyncio.Protocol):
    """Writes an event to all other connections when it reads something: the floor of a change."""

    _event = b"event: session\ndata: %b\n\n" % BODY
    _open: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._open.add(transport)

    def data_received(self, _: bytes) -> None:
        for transport in self._open - {self._transport}:
            transport.write(self._event)

    def connection_lost(self, _: Exception | None) -> None:
        self._open.discard(self._transport)


class Relay(asyncio.Protocol):
    """Copies what it reads to the other connection of a pair; the browser's opens upstream's."""

    def __init__(self, origin: int, other: "Relay | None" = None) -> None:
        self._origin = origin
        self._other = other
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if self._other is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        _, self._other = await asyncio.get_running_loop().create_connection(
            lambda: Relay(self._origin, self), "127.0.0.1", self._origin
        )
        self._other._transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early += data
        else:
            self._other._transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self._other is not None:
            self._other._transport.close()


async def _serve(protocol: Callable[[], asyncio.Protocol], port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def _server(kind: str, origin: str = "0") -> Callable[[], asyncio.Protocol]:
    if kind == "relay":
        return lambda: Relay(int(origin))
    return {"answer": Answer, "push": Push}[kind]


if __name__ == "__main__":
    kind, port, *origin = sys.argv[1:]
    uvloop.run(_serve(_server(kind, *origin), int(port)))
