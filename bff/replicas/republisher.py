"""Keeps every revocation in the store, also when the store loses its data.

A marker in the store names its data and says whether that has every revocation. Each heartbeat
reads the marker, and begins new data if the store was flushed, restarted or replaced, or lost a
stream. A replica that finds another marker announces all revocations that it knows and the store
lacks, and then marks the data as complete. A replica that starts waits until the data is complete,
and completes it if no other replica does.

Each heartbeat reads the sealed store key as well. If the store lost it, a replica that starts would
make another one, and would understand no announcement of the others.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from bff.background import DONE, Background, Beat
from bff.replicas import keys, scripts
from bff.replicas.announcements import STREAMS, messages
from bff.replicas.connection import Connection
from bff.replicas.link import Command
from bff.replicas.store_key import StoreKey
from bff.replicas.valkey import StoreError, StoreUnavailable
from bff.tokens.revocations import Revocation

OTHERS_SECONDS: Final = 10.0
"""Seconds for which a replica that may lack revocations lets others complete the data. A replica
needs less to notice that the store is back."""
_POLL_SECONDS: Final = 0.25
"""Seconds between two looks at the marker while another replica completes the data."""
_EXCHANGE_SECONDS: Final = 5.0
"""Seconds to wait for an answer of the store; no request waits for it."""
_MAX_MESSAGES: Final = 200
"""Revocations in one command; bounds the time for which it holds the store and this process."""
_HUNG_SECONDS: Final = 120.0
"""Seconds after which completing the data counts as hung, when no replica has got further: time for
all pages of the revocations."""
_MARKER = re.compile(rb"(partial|complete) ([0-9a-f]+)")
_COMPLETE: Final = b"complete"


class Republisher:
    """Completes the data of the store.

    Args:
        connection: to the store.
        background: runs it.
        name: of this replica.
        revocations: lists what this replica knows.
        key: the store key; announcements are concealed with it.
        listen: begins to read announcements.
        catch_up: reads the announcements that are kept.
        waits: called when this replica begins to wait for the others.
        begun: called when the data that this replica used is replaced by new data.

    Attributes:
        data: the name of the store's data, as far as this replica knows.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        background: Background,
        name: str,
        revocations: Callable[[], Sequence[Revocation]],
        key: StoreKey,
        listen: Callable[[], None],
        catch_up: Callable[[], Awaitable[None]],
        waits: Callable[[], None],
        begun: Callable[[], None],
    ) -> None:
        self.data: bytes | None = None
        self._connection, self._background = connection, background
        self._name = name
        self._revocations = revocations
        self._key = key
        self._listen = listen
        self._catch_up = catch_up
        self._waits = waits
        self._begun = begun
        self._marker = b""
        """The marker that the last heartbeat read."""
        self._confirmed: bytes | None = None
        """The marker of the data that this replica has completed or found complete."""
        self._knows_all = False
        """Whether this replica has read complete data: only then may it mark data complete."""
        self._running = False
        self.ready = asyncio.Event()
        """Set once this replica has found the data complete."""

    def watch(self) -> list[Command]:
        """List the commands that read the marker and the sealed store key."""
        names = (keys.MARKER, keys.stream("revocations"), keys.stream("purges"))
        return [("EVAL", scripts.DATA, len(names), *names, self._name), *self._key.watch()]

    def on_watched(self, marker: bytes, *sealed: bytes | None) -> None:
        """Complete the data if what a heartbeat read has changed."""
        self._marker = marker
        if marker == self._confirmed and list(sealed) == self._key.sealed:
            return
        if not self._running:
            self._running = True
            self._background.start("store_revocations", self._run, deadline=_HUNG_SECONDS)

    async def close(self) -> None:
        """Stop."""
        await self._background.stop("store_revocations")

    async def _run(self, beat: Beat) -> bool:
        # Without the store it is done: the next successful heartbeat tries again.
        with contextlib.suppress(StoreUnavailable, StoreError):
            await self._key.agree()
            self._listen()
            complete = await self._complete(beat)
            if not self._knows_all:
                await self._catch_up()
            self._confirmed, self._knows_all = complete, True
            self.ready.set()
        self._running = False
        return DONE

    async def _complete(self, beat: Beat) -> bytes:
        """Make the data complete; returns its marker."""
        loop, marker = asyncio.get_running_loop(), self._marker
        ends = loop.time() + OTHERS_SECONDS
        state, _ = _parse(marker)
        if state != _COMPLETE and not self._knows_all:
            self._waits()
        while True:
            beat()
            before, (state, self.data) = self.data, _parse(marker)
            if None not in (before, self.data) and before != self.data:
                self._begun()
            incomplete = state != _COMPLETE and not self._knows_all and loop.time() < ends
            if incomplete or self.data is None:
                await asyncio.sleep(_POLL_SECONDS)
                look, *_ = self.watch()
                (marker,) = await self._connection.execute(look, timeout=_EXCHANGE_SECONDS)
                continue
            revocations = self._revocations()
            if state == _COMPLETE and not revocations:
                return marker
            marker, announced = await self._announce(self.data, "part")
            if announced:
                # No other replica announces now, so none announces the same.
                kept = await self._kept() if revocations else set()
                marker, announced = await self._publish(self.data, revocations, kept)
                if announced:
                    return marker
            await asyncio.sleep(_POLL_SECONDS)

    async def _kept(self) -> set[bytes]:
        """Read the revocations that the store keeps."""
        kept: set[bytes] = set()
        last = "+"
        while True:
            command = ("XREVRANGE", keys.stream("revocations"), last, "-", "COUNT", _MAX_MESSAGES)
            (page,) = await self._connection.execute(command, timeout=_EXCHANGE_SECONDS)
            for number, fields in messages(page):
                kept.update(text for name, text in fields if name == b"revocation")
                last = f"({number.decode()}"
            if not page:
                return kept

    async def _publish(
        self, data: bytes, revocations: Sequence[Revocation], kept: set[bytes]
    ) -> tuple[bytes, bool]:
        """Announce the revocations that are not *kept*, and mark the data as complete.

        Returns:
            The marker, and whether this replica did so. Otherwise another replica announces now,
            or the store has lost its data again.
        """
        parts = range(0, max(1, len(revocations)), _MAX_MESSAGES)
        for start in parts:
            part = revocations[start : start + _MAX_MESSAGES]
            texts = [text for one in part if (text := one.encode().encode()) not in kept]
            order = "last" if start == parts[-1] else "part"
            marker, announced = await self._announce(data, order, *texts)
            if not announced:
                return marker, False
        return marker, True

    async def _announce(self, data: bytes, order: str, *texts: bytes) -> tuple[bytes, bool]:
        command = (
            *("EVAL", scripts.REPUBLISH, 3, keys.MARKER, keys.REPUBLISHER),
            *(keys.stream("revocations"), data, self._name, round(1000 * _EXCHANGE_SECONDS)),
            *(STREAMS["revocations"], order, *texts),
        )
        ((marker, announced),) = await self._connection.execute(command, timeout=_EXCHANGE_SECONDS)
        return marker, bool(announced)


def _parse(marker: bytes | None) -> tuple[bytes | None, bytes | None]:
    """Read the state and the name of the data; None for a marker that no gateway wrote."""
    parsed = _MARKER.fullmatch(marker or b"")
    return (parsed[1], parsed[2]) if parsed else (None, None)
