"""Announcements of replicas to one another: purges and revocations.

An announcement is a message on a stream, not on a channel: a replica that was cut off reads what
was announced meanwhile, and one that starts reads the revocations that are kept.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bff.background import Background, Beat
from bff.replicas import keys
from bff.replicas.connection import HUNG_SECONDS, RETRY_SECONDS, Connection
from bff.replicas.valkey import SOCKET_SECONDS, ClientFactory

_BLOCK_MILLISECONDS: Final = 1000
"""Milliseconds that the server blocks a read while no message arrives."""


_LISTEN_SECONDS: Final = 2 * SOCKET_SECONDS + _BLOCK_MILLISECONDS / 1000
"""Seconds: the socket timeout of the listener; longer than a blocked read."""


_CATCH_UP_SECONDS: Final = 30.0
"""Seconds that a replica may read kept messages before it starts."""


_MAX_MESSAGES: Final = 500
"""Messages in one read; bounds the memory of its answer."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One kind of announcement.

    Attributes:
        kept: about how many messages the store keeps.
        from_the_first: whether a replica that starts reads the kept messages, or only new ones.
    """

    kept: int
    from_the_first: bool


STREAMS: Final = {
    "purges": Stream(10_000, from_the_first=False),
    "revocations": Stream(100_000, from_the_first=True),
}


class Listener:
    """Reads announcements, on a connection of its own: a read waits for seconds.

    Args:
        clients: makes its client.
        connection: counts outages, and deletes foreign values.
        background: runs its loop.
        count: counts foreign messages.
    """

    def __init__(
        self,
        clients: ClientFactory,
        connection: Connection,
        background: Background,
        count: Callable[[str, int], None],
    ) -> None:
        self._clients = clients
        self._background = background
        self._client = clients.connect(_LISTEN_SECONDS)
        self._connection = connection
        self._count = count
        self._caught_up = asyncio.Event()
        self._positions: dict[str, Any] = {}
        """By key of a stream: the number of the last message read."""
        self._failed = False
        """Whether a read failed: streams that appear later are read from their first message."""

    def start(self, received: Callable[[dict[str, str]], None]) -> None:
        """Call *received* with each announcement, this replica's own included, until `close`."""
        listen = partial(self._listen, received)
        self._background.start("store_listener", listen, deadline=HUNG_SECONDS)

    async def caught_up(self) -> None:
        """Wait until the kept messages are read, so that no revoked token is accepted at start.

        Raises:
            StoreError: that takes too long.
        """
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self._caught_up.wait()
        except TimeoutError:
            raise self._clients.error("is too slow to send the revocations") from None

    async def close(self) -> None:
        await self._background.stop("store_listener")
        await self._clients.close(self._client)

    async def _listen(self, received: Callable[[dict[str, str]], None], beat: Beat) -> None:
        outages: int | None = None
        while True:
            beat()
            try:
                if outages != self._connection.outages:
                    outages = self._connection.outages
                    # After an outage the address may lead to another server.
                    self._client = await self._clients.reconnect(self._client, _LISTEN_SECONDS)
                    await self._find_positions()
                await self._read(received)
            except Exception as exc:  # noqa: BLE001  the listener has to survive any answer
                if self._clients.is_foreign(exc):
                    await self._delete_foreign()
                outages, self._failed = None, True
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, received: Callable[[dict[str, str]], None]) -> None:
        block = _BLOCK_MILLISECONDS if self._caught_up.is_set() else None
        streams = await self._client.xread(self._positions, count=_MAX_MESSAGES, block=block)
        for key, messages in streams or ():
            for number, fields in messages:
                self._positions[key.decode()] = number
                try:
                    received({_text(name): _text(field) for name, field in fields.items()})
                except Exception:  # noqa: BLE001  a foreign message must not stop the listener
                    self._count("foreign", 1)
        if not streams:
            self._caught_up.set()

    async def _find_positions(self) -> None:
        """Continue after the last message, or from the first if the stream was replaced."""
        for name, stream in STREAMS.items():
            key = keys.stream(name)
            newest = await self._client.xrevrange(key, count=1)
            if key not in self._positions:
                from_the_first = self._failed or stream.from_the_first or not newest
                self._positions[key] = "0-0" if from_the_first else newest[0][0]
            elif not newest or _numbers(newest[0][0]) < _numbers(self._positions[key]):
                self._positions[key] = "0-0"

    async def _delete_foreign(self) -> None:
        for key in map(keys.stream, STREAMS):
            try:
                await self._client.xrevrange(key, count=1)
            except Exception as exc:  # noqa: BLE001  as above
                if self._clients.is_foreign(exc):
                    self._count("foreign", 1)
                    self._connection.execute_nowait(("UNLINK", key))


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _numbers(number: bytes | str) -> tuple[int, ...]:
    text = number if isinstance(number, str) else number.decode()
    return tuple(map(int, text.split("-")))
