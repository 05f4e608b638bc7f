"""Announcements of replicas to one another: purges, revocations, and news for listeners.

An announcement is a message on a stream, not on a channel. So a replica that was cut off reads the
announcements that it missed, and a replica that starts reads the kept revocations.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
"""Seconds that a replica may take to read kept messages."""
FAILING_SECONDS: Final = 2.0
"""Seconds without a successful read after which a replica uses its store no longer: it learns of
no revocation."""
_MAX_MESSAGES: Final = 500
"""Messages in one read; bounds the memory of its answer."""


STREAMS: Final = {"purges": 10_000, "revocations": 100_000, "news": 1_000}
"""About how many messages of each kind the store keeps; a replica that starts reads them."""
Message = tuple[bytes, list[tuple[bytes, bytes]]]
"""The number of a message, and its fields in order."""


def messages(answer: Any) -> Iterator[Message]:
    """Read the messages of a stream from an answer of the store."""
    for number, parts in answer or ():
        yield number, list(zip(parts[::2], parts[1::2], strict=True))


@dataclass(eq=False)
class Listener:
    """Reads announcements, on a connection of its own: a read waits for seconds.

    Args:
        clients: makes its client.
        connection: deletes foreign values.
        background: runs its loop.
        source: returns the number of outages and the name of the store's data now.
        count: counts foreign messages.
    """

    clients: ClientFactory
    connection: Connection
    background: Background
    source: Callable[[], tuple[int, object]]
    count: Callable[[str, int], None]
    _started: bool = field(default=False, init=False)
    _caught_up: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _positions: dict[str, Any] = field(default_factory=dict, init=False)
    """By key of a stream: the number of the last message read."""
    _data: object = field(default=None, init=False)
    """The data that they are positions in."""
    _failing_since: float | None = field(default=None, init=False)
    """When the first read failed after the last one that succeeded."""

    def __post_init__(self) -> None:
        self._client = self.clients.connect(_LISTEN_SECONDS)

    @property
    def fails(self) -> bool:
        """Whether every read has failed for `FAILING_SECONDS`."""
        since = self._failing_since
        return since is not None and asyncio.get_running_loop().time() - since >= FAILING_SECONDS

    def start(self, received: Callable[[str, dict[str, str]], None]) -> None:
        """Call *received* with the number and fields of each announcement, until `close`.

        This replica's own announcements are included.
        """
        if not self._started:
            self._started = True
            listen = partial(self._listen, received)
            self.background.start("store_listener", listen, deadline=HUNG_SECONDS)

    async def catch_up(self) -> None:
        """Wait until this replica has read all present messages, so it accepts no revoked token.

        Raises:
            StoreError: the store is too slow.
        """
        self._caught_up.clear()
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self._caught_up.wait()
        except TimeoutError:
            raise self.clients.error("is too slow to send the revocations") from None

    async def close(self) -> None:
        await self.background.stop("store_listener")
        await self.clients.close(self._client)

    async def _listen(self, received: Callable[[str, dict[str, str]], None], beat: Beat) -> None:
        source: object = None
        while True:
            beat()
            try:
                if source != self.source():
                    source = self.source()
                    self._client = await self.clients.reconnect(self._client, _LISTEN_SECONDS)
                    await self._find_positions()
                await self._read(received)
                self._failing_since = None
            except Exception as exc:  # noqa: BLE001  the listener has to survive any answer
                if self._failing_since is None:
                    self._failing_since = asyncio.get_running_loop().time()
                if self.clients.is_foreign(exc):
                    await self._delete_foreign()
                source = None
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, received: Callable[[str, dict[str, str]], None]) -> None:
        block = _BLOCK_MILLISECONDS if self._caught_up.is_set() else None
        streams = await self._client.xread(self._positions, count=_MAX_MESSAGES, block=block)
        for key, answer in streams or ():
            for number, fields in messages(answer):
                self._positions[key.decode()] = number
                try:
                    received(number.decode(), _unique(fields))
                except Exception:  # noqa: BLE001  a foreign message must not stop the listener
                    self.count("foreign", 1)
        if not streams:
            self._caught_up.set()

    async def _find_positions(self) -> None:
        """Continue after the last message, or from the first if the stream was replaced.

        In new data a message may have a lower number: the clock of its server may be behind.
        """
        _, data = self.source()
        if data is not None:
            if self._data not in (None, data):
                self._positions.clear()
            self._data = data
        for name in STREAMS:
            key = keys.stream(name)
            newest = list(messages(await self._client.xrevrange(key, count=1)))
            position = self._positions.get(key, b"0-0")
            if not newest or _numbers(newest[0][0]) < _numbers(position):
                position = b"0-0"
            self._positions[key] = position

    async def _delete_foreign(self) -> None:
        for key in map(keys.stream, STREAMS):
            try:
                await self._client.xrevrange(key, count=1)
            except Exception as exc:  # noqa: BLE001  as above
                if self.clients.is_foreign(exc):
                    self.count("foreign", 1)
                    self.connection.execute_nowait(("UNLINK", key))


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _unique(fields: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Refuse a repeated field (ValueError): a reader must not choose one of the two."""
    message = {_text(name): _text(value) for name, value in fields}
    if len(message) != len(fields):
        raise ValueError("repeated field")
    return message


def _numbers(number: bytes) -> tuple[int, ...]:
    return tuple(map(int, number.decode().split("-")))
