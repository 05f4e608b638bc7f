"""The values that replicas store in Valkey and read from it, one method for each purpose.

Methods that wait for an answer raise `StoreUnavailable`. The others (`allow`, `pause`, `renew`,
`release`, `drop`) send without waiting; while the store is down they do nothing.
"""

from collections.abc import Callable, Sequence
from typing import Final

from bff.background import Background
from bff.limits.rate import MAX_RESET
from bff.replicas import keys, scripts
from bff.replicas.announcements import STREAMS, Listener
from bff.replicas.connection import Connection
from bff.replicas.valkey import ClientFactory, StoreAddress

_NO_KEY: Final = -2
"""PTTL's answer for a key that does not exist."""


_STORED, _PURGED = 1, 0
"""Results of `keep.lua`; the third means superseded."""


class Store:
    """One Valkey server or cluster.

    Args:
        address: where it is.
        background: runs its loops.
        timeout: seconds that a request may wait for it.
        name: the name of this replica, unlike any other's.
        count: counts commands by outcome: ok, late, error, foreign.
        changed: called when the store goes down (with a reason) or comes up (with None).
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
    ) -> None:
        self.timeout = timeout
        clients = ClientFactory(address)
        self.connection = Connection(
            clients,
            background=background,
            timeout=timeout,
            name=name,
            count=count,
            changed=changed,
        )
        self.listener = Listener(clients, self.connection, background, count)

    async def open(self, received: Callable[[dict[str, str]], None]) -> None:
        """Connect, call *received* with each announcement, and read those that are kept.

        Raises:
            StoreError: the store cannot be used now; the connection keeps trying until `close`.
        """
        self.listener.start(received)
        await self.connection.open()
        await self.listener.caught_up()

    async def close(self) -> None:
        """Send what is queued, within `timeout`, and disconnect."""
        await self.listener.close()
        await self.connection.close()

    @property
    def up(self) -> bool:
        """Whether the store is up."""
        return self.connection.up

    @property
    def reason(self) -> str | None:
        """Why the store is down."""
        return self.connection.reason

    @property
    def replicas(self) -> int:
        """How many replicas ran when the store was last up."""
        return self.connection.replicas

    def mark_down(self) -> None:
        """Count the store as down: a request waited for it as long as a request may."""
        self.connection.mark_down("slow")

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
        """Share that upstream wants no load for *seconds*."""
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

        Only while *token* holds the claim: without it another replica loads, or the store has lost
        its data, the purges included. Never over a value whose load was claimed later.

        Returns:
            kept, purged (since *claimed*) or superseded.
        """
        execute, timeout = self.connection.execute, self.timeout
        names = [keys.value(prefix, id_) for id_ in ids]
        purges = [keys.purged(prefix, id_) for id_ in ids]
        # All ids are checked first: in a cluster one script may not use the keys of two nodes.
        purged = [("EVAL", scripts.PURGED, 1, purge, claimed) for purge in purges]
        if any(await execute(*purged, timeout=timeout)):
            return "purged"
        arguments = (value, _milliseconds(until), claimed)
        first = (names[0], purges[0], keys.claim(prefix, ids[0]))
        others = zip(names[1:], purges[1:], strict=True)
        results = await execute(
            ("EVAL", scripts.KEEP, 3, *first, *arguments, token),
            *(("EVAL", scripts.KEEP, 2, *pair, *arguments) for pair in others),
            timeout=timeout,
        )
        stored = [name for name, result in zip(names, results, strict=True) if result == _STORED]
        if len(stored) == len(names):
            return "kept"
        if stored:  # under all of its ids, or under none
            await execute(*(("UNLINK", name) for name in stored), timeout=timeout)
        return "purged" if _PURGED in results else "superseded"

    async def purge(self, prefix: str, id_: str, *, remembered: float) -> bytes | None:
        """Delete a copy and return it; for *remembered* seconds no load begun before is stored."""
        names = keys.value(prefix, id_), keys.purged(prefix, id_)
        command = ("EVAL", scripts.PURGE, 2, *names, _milliseconds(remembered))
        (value,) = await self.connection.execute(command, timeout=self.timeout)
        return value  # type: ignore[no-any-return]

    def drop(self, prefix: str, id_: str) -> None:
        """Delete a value."""
        self.connection.execute_nowait(("UNLINK", keys.value(prefix, id_)))

    # -- announcements

    async def publish(self, stream: str, **fields: str) -> None:
        """Announce *fields* to all replicas, this one included, on one of `STREAMS`."""
        pairs = [part for pair in fields.items() for part in pair]
        kept = ("MAXLEN", "~", STREAMS[stream].kept)
        command = ("XADD", keys.stream(stream), *kept, "*", *pairs)
        await self.connection.execute(command, timeout=self.timeout)

    async def is_empty(self, stream: str) -> bool:
        """Whether the store keeps no announcement on *stream*."""
        command = ("XREVRANGE", keys.stream(stream), "+", "-", "COUNT", 1)
        (newest,) = await self.connection.execute(command, timeout=self.timeout)
        return not newest


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _upstream_milliseconds(seconds: float) -> int:
    return _milliseconds(min(max(seconds, 0.001), MAX_RESET))
