"""Two ways to send the commands of requests: a protocol for one server, the client for a cluster.

Both send batches in order and give each answer to the command at its position. A batch whose
connection ends gets an error as the answer of each command. The protocol makes a command
cheaper; heartbeats, announcements and clusters stay with the client.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from bff.replicas.valkey import SOCKET_SECONDS, ClientFactory, cancel

_MAX_BATCH: Final = 500
"""Commands in one batch of a client; bounds the memory of its answers."""
Command = tuple[Any, ...]
"""A command: its name, then its arguments. An EVAL: script, number of keys, keys, arguments."""
Receive = Callable[[Any], None]
"""Gets the answer of a command, or its error."""
Batch = list[tuple[Command, Receive]]


class ClientLink:
    """A client that sends one batch after another: for heartbeats, and to a cluster."""

    def __init__(self, clients: ClientFactory) -> None:
        self.client = clients.connect(SOCKET_SECONDS)
        self.must_reconnect = False
        """Whether the connection may lead to a former server of the address."""
        self._clients = clients
        self._queue: Batch = []
        self._sender: asyncio.Task[None] | None = None

    def submit(self, batch: Batch) -> None:
        """Send *batch* after what was submitted before, in a task that no caller can cancel."""
        self._queue += batch
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:_MAX_BATCH], self._queue[_MAX_BATCH:]
            await self.send(batch)

    async def send(self, batch: Batch) -> None:
        results: list[Any]
        try:
            if self.must_reconnect:
                self.must_reconnect = False
                self.client = await self._clients.reconnect(self.client, SOCKET_SECONDS)
            pipeline = self.client.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            results = await pipeline.execute(raise_on_error=False)
        except Exception as exc:  # noqa: BLE001  each caller of the batch gets the error
            results = [exc] * len(batch)
        for (_, receive), result in zip(batch, results, strict=True):
            receive(result)

    async def close(self) -> None:
        await cancel([self._sender] if self._sender else [])
        await self._clients.close(self.client)


class DirectLink:
    """One connection to one server, which is opened when it is used, and again after it ended."""

    def __init__(self, clients: ClientFactory) -> None:
        self.must_reconnect = False
        """Whether the connection may lead to a former server of the address."""
        self._clients = clients
        self._wire: _Wire | None = None
        self._former: list[_Wire] = []
        """Connections that get no more commands, and may still get answers."""
        self._unsent: Batch = []
        self._connecting: asyncio.Task[None] | None = None

    def submit(self, batch: Batch) -> None:
        """Send *batch* after what was submitted before."""
        if self.must_reconnect:
            self.must_reconnect = False
            self._replace()
        if self._wire is not None and self._wire.open:
            self._wire.send(batch)
            return
        self._unsent += batch
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        error: Exception | None = None
        try:
            async with asyncio.timeout(SOCKET_SECONDS):
                self._wire = await self._open()
        except Exception as exc:  # noqa: BLE001  each caller gets the error
            error = exc
        batch, self._unsent = self._unsent, []
        if self._wire is not None and error is None:
            self._wire.send(batch)
            return
        for _, receive in batch:
            receive(error)

    async def _open(self) -> "_Wire":
        """Connect and log in.

        Raises:
            Exception: one of the client's errors, or of the operating system.
        """
        loop = asyncio.get_running_loop()
        transport, wire = await loop.create_connection(
            lambda: _Wire(self._clients), **self._clients.endpoint()
        )
        answers: list[asyncio.Future[Any]] = []
        batch: Batch = []
        for command in self._clients.greeting():
            answers.append(loop.create_future())
            batch.append((command, answers[-1].set_result))
        try:
            wire.send(batch)
            for answer in answers:
                if isinstance(result := await asyncio.shield(answer), Exception):
                    raise result  # noqa: TRY301  it ends the connection
        except BaseException:
            transport.abort()
            raise
        return wire

    def _replace(self) -> None:
        """Send no more on the connection; other callers still wait for its answers."""
        if self._wire is not None:
            self._wire.retire()
            self._former = [wire for wire in (*self._former, self._wire) if wire.open]
            self._wire = None

    async def close(self) -> None:
        await cancel([self._connecting] if self._connecting else [])
        self._replace()
        for wire in self._former:
            wire.end(ConnectionError("the gateway closes the connection"))


class _Wire(asyncio.Protocol):
    """An open connection. Answers come in the order of the commands."""

    def __init__(self, clients: ClientFactory) -> None:
        self.open = True
        self._retired = False
        self._reader = clients.reader()
        self._pack = clients.pack
        self._waiting: deque[Receive] = deque()
        self._transport: asyncio.Transport | None = None
        self._read = False
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        with contextlib.suppress(OSError):
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, batch: Batch) -> None:
        assert self._transport is not None  # noqa: S101  it is made by now
        self._waiting.extend([receive for _, receive in batch])
        self._transport.write(b"".join([self._pack(command) for command, _ in batch]))
        if self._watch is None and batch:
            self._read = True
            self._look()

    def retire(self) -> None:
        """End the connection when the commands that were sent on it have their answers."""
        self._retired = True
        self._end_if_retired()

    def _end_if_retired(self) -> None:
        if self._retired and not self._waiting:
            self.end(ConnectionError("the server of the address may have changed"))

    def _look(self) -> None:
        """End a connection that was silent for `SOCKET_SECONDS` while a command waited."""
        self._watch = None
        if not self._waiting:
            return
        if not self._read:
            self.end(TimeoutError("no answer in time"))
            return
        self._read = False
        self._watch = asyncio.get_running_loop().call_later(SOCKET_SECONDS, self._look)

    def data_received(self, data: bytes) -> None:
        self._read = True
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                waiting.popleft()(answer)
        except Exception as exc:  # noqa: BLE001  no Valkey server, or more answers than commands
            self.end(exc)
        self._end_if_retired()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc or ConnectionError("the server closed the connection"))

    def end(self, error: Exception) -> None:
        """End the connection; *error* is the answer of the commands that wait."""
        self.open = False
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            self._waiting.popleft()(error)
