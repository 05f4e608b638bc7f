"""One load for all replicas: use what another replica stored, or claim the load and make it.

A claim is a token that expires after `CLAIM_SECONDS`. Its holder renews it during the load, and
stores the result only if it still holds the claim. The other replicas poll until the result is
stored, or until they can claim the load themselves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from bff.clock import Clock
from bff.replicas.codec import ForeignError
from bff.replicas.store import Store
from bff.replicas.valkey import if_available

CLAIM_SECONDS: Final = 1.0
"""Seconds: if a replica dies during a load, the others load that session after this time."""


_POLL_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)
"""Seconds between two polls for another replica's load; the last repeats."""


T = TypeVar("T")


Moment = Callable[[float, float], float]
"""Converts the time at which a value was made (Unix seconds) to the clock that never jumps. The
second argument is the value's lifetime. Raises `ForeignError` for a value that never expires."""


class PurgedError(Exception):
    """A stored value was purged after its load had been claimed."""


class SharedLookup(Protocol[T]):
    """A lookup in the store: reads and writes values of one kind, and says which need no load."""

    @property
    def prefix(self) -> str:
        """The part of its keys before the id."""

    @property
    def id(self) -> str:
        """The id by which it is requested."""

    @property
    def metric(self) -> str:
        """Counts the outcomes: used, dropped, kept, purged, superseded."""

    def decode(self, value: bytes, moment: Moment) -> T | None:
        """Read a stored value; None if it is too old.

        Raises:
            ForeignError: it does not match this lookup.
            PurgedError: it was purged.
        """

    def is_answer(self, entry: T) -> bool:
        """Whether no load is needed."""

    def is_current(self) -> bool:
        """Whether the settings are still those with which the load began."""

    def encode(self, outcome: T, previous: T | None, claimed: int) -> "Value | None":
        """Write the outcome of a load; None if other replicas must not use it.

        *previous* is what was stored before; *claimed* is the time of the claim.
        """


@dataclass(frozen=True, slots=True)
class Value:
    """A value for the store.

    Attributes:
        ids: the ids under which it is stored, besides the requested one.
        ends: when its lifetime is over.
        obsolete: ids whose values are deleted.
    """

    data: bytes
    ids: set[str]
    ends: float
    obsolete: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one load.

    Attributes:
        time: microseconds of the store's clock, before the load.
        received: when this replica received that time, on the clock that never jumps.
    """

    token: str
    time: int
    received: float

    def at(self, moment: float) -> float:
        """Convert *moment* to the store's clock, in seconds; it errs to an earlier time."""
        return self.time / 1e6 + moment - self.received


class Deadline:
    """How many seconds one load may still wait for the store."""

    __slots__ = ("_clock", "left")

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.left = seconds
        self._clock = clock

    async def wait(self, answer: Awaitable[T]) -> T:
        sent, _ = self._clock()
        try:
            return await answer
        finally:
            self.left -= self._clock()[0] - sent


class SharedLoads:
    """Makes loads, each by one replica for all.

    Args:
        store: where results and claims are.
        timeout: seconds that one load may wait for the store.
        deadline: seconds to wait for another replica's load.
        clock: reads the two clocks.
        spawn: runs a coroutine in a task of its own.
        tokens: makes tokens that no other replica makes.
        count: counts a metric.
    """

    def __init__(
        self,
        store: Store,
        *,
        timeout: float,
        deadline: float,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        tokens: Callable[[], str],
        count: Callable[..., None],
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._deadline = deadline
        self._clock = clock
        self._spawn = spawn
        self._tokens = tokens
        self._count = count

    async def get(
        self, lookup: SharedLookup[T], load: Callable[[float], Awaitable[T]]
    ) -> tuple[T, T | None, bool]:
        """Get what another replica stored, or *load* it while no other replica does.

        *load* gets the seconds that it may still wait for the store.

        Returns:
            The outcome; the entry stored before, fresh or not; whether this replica loaded it.
        """
        deadline, token = Deadline(self._timeout, self._clock), self._tokens()
        search = self._find(lookup, token, deadline)
        claim, entry = await if_available(search) or (None, None)
        if entry is not None and lookup.is_answer(entry):
            if claim is not None:
                self._store.release(lookup.prefix, lookup.id, token)
            self._count(lookup.metric, "used")
            return entry, entry, False
        renewal = self._spawn(self._renew(lookup, token)) if claim else None
        try:
            outcome = await load(deadline.left)
        finally:
            if renewal:
                renewal.cancel()
        if claim is not None:
            self._spawn(self._keep(lookup, claim, outcome, entry))
        return outcome, entry, True

    async def _find(
        self, lookup: SharedLookup[T], token: str, deadline: Deadline
    ) -> tuple[Claim | None, T | None]:
        async with self._store.turns:
            sent, _ = self._clock()
            value, seconds = await deadline.wait(
                self._store.read(lookup.prefix, lookup.id, timeout=deadline.left)
            )
        entry = self._decode(lookup, value, seconds, sent)
        if entry is not None and lookup.is_answer(entry):
            return None, entry
        return await self._claim(lookup, token, deadline)

    async def _claim(
        self, lookup: SharedLookup[T], token: str, deadline: Deadline
    ) -> tuple[Claim | None, T | None]:
        """Claim the load, or wait until its holder stores a result or gives up."""
        (began, _), polls, left = self._clock(), 0, deadline.left
        while True:
            # We wait for another replica's load, so only the last poll counts against the timeout.
            async with self._store.turns:
                deadline.left, (sent, _) = left, self._clock()
                claimed, value, seconds, time = await deadline.wait(
                    self._store.claim(lookup.prefix, lookup.id, token, CLAIM_SECONDS, timeout=left)
                )
            entry = self._decode(lookup, value, seconds, sent)
            if claimed:
                return Claim(token, time, self._clock()[0]), entry
            if entry is not None and lookup.is_answer(entry):
                return None, entry
            if sent - began > self._deadline:
                return None, entry
            await asyncio.sleep(_POLL_SECONDS[min(polls, len(_POLL_SECONDS) - 1)])
            polls += 1

    async def _renew(self, lookup: SharedLookup[T], token: str) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 3)
            self._store.renew(lookup.prefix, lookup.id, token, CLAIM_SECONDS)

    async def _keep(
        self, lookup: SharedLookup[T], claim: Claim, outcome: T, previous: T | None
    ) -> None:
        """Store the outcome of a load, then let other replicas claim the next."""
        now, _ = self._clock()
        # After a reload the value may belong to the earlier settings.
        value = lookup.encode(outcome, previous, claim.time) if lookup.is_current() else None
        try:
            if value is not None:
                async with self._store.turns:
                    await if_available(self._write(lookup, claim, value, now))
        finally:
            self._store.release(lookup.prefix, lookup.id, claim.token)

    async def _write(self, lookup: SharedLookup[T], claim: Claim, value: Value, now: float) -> None:
        for id_ in value.obsolete:
            self._store.drop(lookup.prefix, id_)
        if value.ends > now:
            result = await self._store.keep(
                lookup.prefix,
                [lookup.id, *value.ids],
                value.data,
                token=claim.token,
                claimed=claim.time,
                until=claim.at(value.ends),
            )
            self._count(lookup.metric, result)

    def _decode(
        self, lookup: SharedLookup[T], value: bytes | None, seconds: float, sent: float
    ) -> T | None:
        """Read a value that expires in *seconds*, according to a command sent at *sent*.

        A value has two ages: by the wall clock of the replica that wrote it, and by the store's
        expiry. The greater counts, so neither a wrong clock nor a slow command makes it younger.
        """
        if value is None:
            return None
        now, wall = self._clock()

        def moment(made: float, lifetime: float) -> float:
            if seconds < 0:
                raise ForeignError  # it never expires
            return sent - max(wall - made - (now - sent), lifetime - seconds, 0.0)

        try:
            return lookup.decode(value, moment)
        except (ForeignError, PurgedError) as exc:
            result = "purged" if isinstance(exc, PurgedError) else "dropped"
            self._count(lookup.metric, result)
            self._store.drop(lookup.prefix, lookup.id)
            return None
