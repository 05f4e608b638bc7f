"""The values that replicas store in Valkey and read from it, one method for each purpose.

Methods that wait for an answer raise `StoreUnavailable`; `load` returns None. The others (`allow`,
`pause`, `renew`, `release`, `keep`, `drop`) send without waiting; while the store is down they do
nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from bff.background import Background
from bff.limits.rate import MAX_RESET
from bff.replicas import keys, scripts
from bff.replicas.announcements import STREAMS, Listener
from bff.replicas.connection import Connection
from bff.replicas.joint_commands import (
    JointKeep,
    JointLoad,
    StoredLoad,
    budget_arguments,
    budget_keys,
    milliseconds,
)
from bff.replicas.republisher import Republisher
from bff.replicas.shared_budget import SharedBudget
from bff.replicas.store_key import StoreKey
from bff.replicas.valkey import ClientFactory, StoreAddress
from bff.tokens.revocations import Revocation

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
        name: the name of this replica, in hexadecimal digits, unlike any other's.
        count: counts commands by outcome: ok, late, error, foreign.
        changed: called when the store goes down (with a reason) or comes up (with None).
        revocations: lists the revocations that this replica knows.
        waits: called when this replica begins to wait for revocations of other replicas.
        begun: called when the store begins new data while this replica runs.
        random: makes random bytes.

    Attributes:
        turns: the loads that may wait for an answer now.
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
        revocations: Callable[[], Sequence[Revocation]],
        waits: Callable[[], None],
        begun: Callable[[], None],
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
            watch=lambda: self.republisher.watch(),  # noqa: PLW0108  made later
            on_watched=lambda answers: self.republisher.on_watched(*answers),
            listener_fails=lambda: self.listener.fails,
        )
        self.turns = connection.turns
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
            key=self.key,
            listen=lambda: self.listener.start(self._received),
            catch_up=self.listener.catch_up,
            waits=waits,
            begun=begun,
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
                await self.republisher.ready.wait()
        except TimeoutError:
            raise self._clients.error("is too slow to send the revocations") from None

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
        length = milliseconds(seconds)
        command = ("EVAL", scripts.TAKE, 1, keys.window(name), limit, want, length)
        ((granted, rest, left),) = await self.connection.execute(command, timeout=timeout)
        return granted, rest, left / 1000

    async def spend(self, budget: SharedBudget, *, timeout: float) -> float:
        """Spend one load; returns the seconds to wait instead, or 0."""
        names = budget_keys(budget)
        command = ("EVAL", scripts.LOAD, len(names), *names, *budget_arguments(budget))
        ((_, wait),) = await self.connection.execute(command, timeout=timeout)
        return float(wait) / 1000

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

    async def read(self, name: str, *, timeout: float) -> tuple[bytes | None, float]:
        """Read the value under the key *name*, and the seconds until it expires."""
        # In this order: if the value is replaced between the two, the older one's time counts.
        left, value = await self.connection.execute(("PTTL", name), ("GET", name), timeout=timeout)
        return (None if left == _NO_KEY else value), left / 1000

    async def load(
        self,
        name: str,
        token: str,
        seconds: float,
        *,
        fresh: float,
        budget: SharedBudget,
        timeout: float,
    ) -> StoredLoad | None:
        """Read a value; if it is too old, claim its one load for *seconds*, and spend it.

        *name* is the key of the value. Returns None if the store is unavailable.

        All of it is one command, even for many loads at the same time. A value whose load was
        claimed longer than *fresh* seconds ago is too old. Without a *token* no load is claimed: a
        load that could be claimed is denied.
        """
        command = self.connection.join(JointLoad, budget, seconds, timeout=timeout, wait=True)
        return None if command is None else await command.add(name, token, fresh)

    def renew(self, name: str, token: str, seconds: float) -> None:
        """Make the claim of *token* last for *seconds* from now."""
        self.connection.execute_nowait(
            ("EVAL", scripts.RENEW, 1, keys.claim(name), token, milliseconds(seconds))
        )

    def release(self, name: str, token: str) -> None:
        """Let another replica claim the load."""
        self.renew(name, token, 0)

    def keep(
        self,
        names: Sequence[str],
        value: bytes,
        *,
        token: str,
        claimed: int,
        until: float,
        done: Callable[[str], None],
    ) -> None:
        """Store a value under each of its *names*, *until* the store's time, and release the claim.

        The store keeps it only while *token* holds the claim of the first name. Otherwise another
        replica loads, or the store has lost its data. It never replaces a value whose load was
        claimed later. If the store answers, *done* gets the result: kept or superseded.
        """
        node = names[0].partition("}")[0]
        command = self.connection.join(JointKeep, node, timeout=self.timeout, wait=False)
        if command is not None:
            command.add(names, token, value, milliseconds(until), claimed, done=done)

    def drop(self, name: str) -> None:
        """Delete a value."""
        self.connection.execute_nowait(("UNLINK", name))

    # -- announcements

    async def publish(self, stream: str, **fields: str) -> str:
        """Announce *fields* to all replicas, this one included, on one of `STREAMS`.

        Returns:
            The number of the announcement.
        """
        pairs = [part for pair in fields.items() for part in pair]
        kept = ("MAXLEN", "~", STREAMS[stream])
        command = ("XADD", keys.stream(stream), *kept, "*", *pairs)
        (number,) = await self.connection.execute(command, timeout=self.timeout)
        return number.decode()  # type: ignore[no-any-return]


def _upstream_milliseconds(seconds: float) -> int:
    return milliseconds(min(max(seconds, 0.001), MAX_RESET))
