"""The values that replicas store in Valkey and read from it, one method for each purpose.

Methods that wait for an answer raise `StoreUnavailable`. The others (`allow`, `pause`, `renew`,
`release`, `drop`) send without waiting; while the store is down they do nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from bff.background import Background
from bff.limits.rate import MAX_RESET
from bff.replicas import keys, scripts
from bff.replicas.announcements import STREAMS, Listener
from bff.replicas.connection import Connection
from bff.replicas.republisher import Encodable, Republisher
from bff.replicas.store_key import StoreKey
from bff.replicas.valkey import ClientFactory, StoreAddress

_NO_KEY: Final = -2
"""PTTL's answer for a key that does not exist."""


_READY_SECONDS: Final = 30.0
"""Seconds that a replica may wait at start until the store has every revocation."""


class Store:
    """One Valkey server or cluster.

    Args:
        address: where it is.
        background: runs its loops.
        timeout: seconds that a request may wait for it.
        name: the name of this replica, unlike any other's.
        count: counts commands by outcome: ok, late, error, foreign.
        changed: called when the store goes down (with a reason) or comes up (with None).
        revocations: lists the revocations that this replica knows.
        tokens: makes tokens that no other replica makes.
        random: makes random bytes.

    Attributes:
        key: the key that the replicas share and the store does not know.
    """

    def __init__(
        self,
        address: StoreAddress,
        *,
        background: Background,
        timeout: float,
        name: str,
        count: Callable[[str, int], None],
        changed: Callable[[str | None], None],
        revocations: Callable[[], Sequence[Encodable]],
        tokens: Callable[[], str],
        random: Callable[[int], bytes],
    ) -> None:
        self.timeout = timeout
        self._clients = clients = ClientFactory(address)
        self.connection = connection = Connection(
            clients,
            background=background,
            timeout=timeout,
            name=name,
            count=count,
            changed=changed,
            on_marker=self._look_at,
        )
        self.key = StoreKey(connection, random)
        self._received: Callable[[str, dict[str, str]], None] = lambda _, __: None
        self.listener = Listener(
            clients,
            connection,
            background=background,
            source=lambda: (connection.outages, self.republisher.data),
            count=count,
        )
        self.republisher = Republisher(
            connection,
            background=background,
            name=name,
            revocations=revocations,
            join=self._join,
            catch_up=self.listener.catch_up,
            tokens=tokens,
        )

    async def open(self, received: Callable[[str, dict[str, str]], None]) -> None:
        """Connect, call *received* with each announcement, and read those that are kept.

        Raises:
            StoreError: the store cannot be used now; the connection keeps trying until `close`.
        """
        self._received = received
        await self.connection.open()
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await self.republisher.ready()
        except TimeoutError:
            raise self._clients.error("is too slow to send the revocations") from None

    def _look_at(self, marker: bytes | None) -> None:
        self.republisher.on_marker(marker)

    @property
    def turns(self) -> asyncio.Semaphore:
        """The loads that may wait for an answer now."""
        return self.connection.turns

    async def _join(self) -> None:
        """Agree on the store key, and listen: announcements are concealed with it."""
        await self.key.agree()
        self.listener.start(self._received)

    async def close(self) -> None:
        """Send what is queued, within `timeout`, and disconnect."""
        await self.republisher.close()
        await self.listener.close()
        await self.connection.close()

    @property
    def up(self) -> bool:
        """Whether the store is up, and this replica knows the key of its data."""
        return self.connection.up and self.key.value is not None

    @property
    def reason(self) -> str | None:
        """Why the store is down."""
        if self.connection.up and self.key.value is None:
            return "joining"
        return self.connection.reason

    @property
    def replicas(self) -> int:
        """How many replicas ran when the store was last up."""
        return self.connection.replicas

    def check(self) -> None:
        """Send a heartbeat now: a request waited for the store as long as a request may."""
        self.connection.check()

    # -- limits and budget

    async def take(
        self, name: str, *, limit: int, want: int, seconds: float, timeout: float
    ) -> tuple[int, int, float]:
        """Take up to *want* requests of a window of *limit*; the first taker starts the window.

        Returns:
            How many are granted; how many are left for others; the seconds the window lasts.
        """
        length = _milliseconds(seconds)
        command = ("EVAL", scripts.TAKE, 1, keys.window(name), limit, want, length)
        ((granted, rest, milliseconds),) = await self.connection.execute(command, timeout=timeout)
        return granted, rest, milliseconds / 1000

    async def spend(
        self, origin: str, *, limit: int | None, seconds: float, timeout: float
    ) -> float:
        """Spend one load: at most *limit* in any *seconds*; returns the seconds to wait, or 0."""
        names = keys.spent(origin), keys.allowance(origin), keys.pause(origin)
        longest = _milliseconds(MAX_RESET)
        command = ("EVAL", scripts.SPEND, 3, *names, limit or 0, _milliseconds(seconds), longest)
        (milliseconds,) = await self.connection.execute(command, timeout=timeout)
        return float(milliseconds) / 1000

    def allow(self, origin: str, loads: int, seconds: float) -> None:
        """Share how many loads upstream's bucket allows for the next *seconds*."""
        bounded = _upstream_milliseconds(seconds)
        self.connection.execute_nowait(
            ("EVAL", scripts.ALLOW, 1, keys.allowance(origin), loads, bounded)
        )

    def pause(self, origin: str, seconds: float) -> None:
        """Share that no load may start for *seconds*, because upstream answered 429."""
        bounded = _upstream_milliseconds(seconds)
        self.connection.execute_nowait(("SET", keys.pause(origin), 1, "PX", bounded))

    # -- shared values and their loads

    async def read(self, prefix: str, id_: str, *, timeout: float) -> tuple[bytes | None, float]:
        """Read a value, and the seconds until it expires."""
        key = keys.value(prefix, id_)
        # In this order: if the value is replaced between the two, the older one's time counts.
        milliseconds, value = await self.connection.execute(
            ("PTTL", key), ("GET", key), timeout=timeout
        )
        return (None if milliseconds == _NO_KEY else value), milliseconds / 1000

    async def claim(
        self, prefix: str, id_: str, token: str, seconds: float, *, timeout: float
    ) -> tuple[bool, bytes | None, float, int]:
        """Claim the one load of a value for *seconds*, and read the value after that.

        Returns:
            Whether *token* claimed it; value and seconds as in `read`; and the microseconds of the
            store's clock, which tell purges before the load from purges during it.
        """
        names = keys.value(prefix, id_), keys.claim(prefix, id_)
        command = ("EVAL", scripts.CLAIM, 2, *names, token, _milliseconds(seconds))
        ((claimed, value, milliseconds, time),) = await self.connection.execute(
            command, timeout=timeout
        )
        return bool(claimed), value, milliseconds / 1000, time

    def renew(self, prefix: str, id_: str, token: str, seconds: float) -> None:
        """Make the claim of *token* last for *seconds* from now."""
        name = keys.claim(prefix, id_)
        self.connection.execute_nowait(
            ("EVAL", scripts.RENEW, 1, name, token, _milliseconds(seconds))
        )

    def release(self, prefix: str, id_: str, token: str) -> None:
        """Let another replica claim the load."""
        self.renew(prefix, id_, token, 0)

    async def keep(
        self,
        prefix: str,
        ids: Sequence[str],
        value: bytes,
        *,
        token: str,
        claimed: int,
        until: float,
    ) -> str:
        """Store a value under each of its *ids*, the claimed one first, *until* the store's time.

        The value is stored only while *token* holds the claim. Otherwise another replica loads, or
        the store has lost its data. It never replaces a value whose load was claimed later.

        Returns:
            kept or superseded.
        """
        execute, timeout = self.connection.execute, self.timeout
        names = [keys.value(prefix, id_) for id_ in ids]
        arguments = (value, _milliseconds(until), claimed)
        claim = keys.claim(prefix, ids[0])
        # In a cluster one script may not use the keys of two nodes.
        results = await execute(
            ("EVAL", scripts.KEEP, 2, names[0], claim, *arguments, token),
            *(("EVAL", scripts.KEEP, 1, name, *arguments) for name in names[1:]),
            timeout=timeout,
        )
        if all(results):
            return "kept"
        if any(results):  # under all of its ids, or under none
            stored = [name for name, result in zip(names, results, strict=True) if result]
            await execute(*(("UNLINK", name) for name in stored), timeout=timeout)
        return "superseded"

    def drop(self, prefix: str, id_: str) -> None:
        """Delete a value."""
        self.connection.execute_nowait(("UNLINK", keys.value(prefix, id_)))

    # -- announcements

    async def publish(self, stream: str, **fields: str) -> str:
        """Announce *fields* to all replicas, this one included, on one of `STREAMS`.

        Returns:
            The number of the announcement.
        """
        pairs = [part for pair in fields.items() for part in pair]
        kept = ("MAXLEN", "~", STREAMS[stream].kept)
        command = ("XADD", keys.stream(stream), *kept, "*", *pairs)
        (number,) = await self.connection.execute(command, timeout=self.timeout)
        return number.decode()  # type: ignore[no-any-return]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _upstream_milliseconds(seconds: float) -> int:
    return _milliseconds(min(max(seconds, 0.001), MAX_RESET))
