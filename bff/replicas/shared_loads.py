"""One load for all replicas: use what another replica stored, or claim the load and make it.

A claim is a token that expires after `CLAIM_SECONDS`. Its holder renews it during the load, and
stores the result only if it still holds the claim. The other replicas poll until the result is
stored, or until they can claim the load themselves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from bff.clock import Clock
from bff.replicas.codec import ForeignError
from bff.replicas.shared_budget import Denials, SharedBudget
from bff.replicas.store import Store

CLAIM_SECONDS: Final = 1.0
"""Seconds: if a replica dies during a load, the others load that session after this time."""
_POLL_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)
"""Seconds between two polls for another replica's load; the last repeats."""
_MICROSECOND: Final = 1e-6
"""The store tells ages in microseconds."""
T = TypeVar("T")
Moment = Callable[[float, float], float]
"""Converts the time at which a value was made (Unix seconds) to the clock that never jumps. The
second argument is the value's lifetime. Raises `ForeignError` for a value that never expires."""


class PurgedError(Exception):
    """A stored value was purged after its load had been claimed."""


class SharedLookup(Protocol[T]):
    """A lookup in the store: reads and writes values of one kind, and says which need no load."""

    @property
    def name(self) -> str:
        """The key of the requested value."""

    @property
    def fresh_for(self) -> float:
        """Seconds after its claim for which a stored value may be an answer, at most."""

    @property
    def budget(self) -> SharedBudget:
        """The budget that pays for the load."""

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


class Value(NamedTuple):
    """A value for the store.

    Attributes:
        names: the keys under which it is stored, besides the requested one.
        ends: when its lifetime is over.
        obsolete: the keys that are deleted.
    """

    data: bytes
    names: AbstractSet[str]
    ends: float
    obsolete: AbstractSet[str] = frozenset()


class Claim(NamedTuple):
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


class _Renewals:
    """Makes claims last until they are released, with one timer: most loads end before it fires."""

    def __init__(self, renew: Callable[[str, str, float], None]) -> None:
        self._renew = renew
        self._names: dict[str, str] = {}
        """By token of the claim: the key of its value."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, name: str, token: str) -> None:
        self._names[token] = name
        if self._timer is None:
            self._wait()

    def end(self, token: str) -> None:
        del self._names[token]

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CLAIM_SECONDS / 3, self._run)

    def _run(self) -> None:
        self._timer = None
        for token, name in self._names.items():
            self._renew(name, token, CLAIM_SECONDS)
        if self._names:
            self._wait()


class _Search(NamedTuple, Generic[T]):
    """The result of a search in the store: a claim, an entry, a time to wait, or none of them.

    Attributes:
        left: seconds for which the load may still wait for the store.
        wait: seconds until the budget allows the load; 0 if it is spent; None if the store did
            not answer.
    """

    left: float
    entry: T | None = None
    claim: Claim | None = None
    wait: float | None = None


@dataclass(eq=False)
class SharedLoads:
    """Makes loads, each by one replica for all.

    A load waits for one command to the store before it calls upstream. The command reads the value,
    claims the load and spends it. Another command, for which nothing waits, stores the result.

    Args:
        store: where results and claims are.
        denials: the budgets that are spent.
        timeout: seconds that one load may wait for the store.
        deadline: seconds to wait for another replica's load.
        clock: reads the two clocks.
        tokens: makes tokens that no other replica makes.
        count: counts a metric.
    """

    store: Store
    denials: Denials
    timeout: float
    deadline: float
    clock: Clock
    tokens: Callable[[], str]
    count: Callable[..., None]

    def __post_init__(self) -> None:
        self._renewals = _Renewals(self.store.renew)

    async def get(
        self, lookup: SharedLookup[T], load: Callable[[float | None, float], Awaitable[T]]
    ) -> tuple[T, T | None, bool]:
        """Get what another replica stored, or *load* it while no other replica does.

        *load* gets two numbers of seconds: until the budget allows it (0 if it is spent, None if
        the store did not answer), and for which it may still wait for the store.

        Returns:
            The outcome; the entry stored before, fresh or not; whether this replica loaded it.
        """
        search: _Search[T] = await self._search(lookup)
        left, entry, claim, wait = search
        if claim is None and entry is not None and lookup.is_answer(entry):
            self.count(lookup.metric, "used")
            return entry, entry, False
        if claim is None:
            return await load(wait, left), entry, True
        self._renewals.begin(lookup.name, claim.token)
        try:
            outcome = await load(wait, left)
        finally:
            self._renewals.end(claim.token)
        self._keep(lookup, claim, outcome, entry)
        return outcome, entry, True

    async def _search(self, lookup: SharedLookup[T]) -> _Search[T]:
        """Find an answer, or claim the load, or wait until its holder has stored a result."""
        (began, _), polls, left = self.clock(), 0, self.timeout
        budget, fresh, token = lookup.budget, lookup.fresh_for, self.tokens()
        while True:
            # We wait for another replica's load, so only the last poll counts against the timeout.
            async with self.store.turns:
                sent, _ = self.clock()
                remembered = self.denials.ask(budget, sent)
                looked_up = await self.store.load(
                    lookup.name,
                    "" if remembered else token,
                    CLAIM_SECONDS,
                    fresh=fresh,
                    budget=budget,
                    timeout=left,
                )
            now, _ = self.clock()
            rest = left - (now - sent)
            if looked_up is None:
                return _Search(rest)
            entry = self._decode(lookup, looked_up.value, looked_up.left, sent)
            if looked_up.claimed:
                self.denials.forget(budget)
                return _Search(rest, entry, Claim(token, looked_up.time, now), 0.0)
            if entry is not None and lookup.is_answer(entry):
                return _Search(rest, entry)
            if looked_up.denied:
                if not remembered:
                    self.denials.record(budget, now, looked_up.denied)
                return _Search(rest, entry, wait=remembered or looked_up.denied)
            if sent - began > self.deadline:
                return _Search(rest, entry)
            if looked_up.value is not None and looked_up.age <= fresh:
                # It is too old for this lookup: claim the load unless there is a later value.
                # If the store's clock stands still, this value must not count as a later one.
                fresh, left = looked_up.age - _MICROSECOND, rest
                continue
            await asyncio.sleep(_POLL_SECONDS[min(polls, len(_POLL_SECONDS) - 1)])
            polls += 1

    def _keep(self, lookup: SharedLookup[T], claim: Claim, outcome: T, previous: T | None) -> None:
        """Store the outcome of a load, and let other replicas claim the next."""
        # After a reload the value may belong to the earlier settings.
        value = lookup.encode(outcome, previous, claim.time) if lookup.is_current() else None
        for name in value.obsolete if value else ():
            self.store.drop(name)
        if value is None or value.ends <= self.clock()[0]:
            self.store.release(lookup.name, claim.token)
            return
        self.store.keep(
            [lookup.name, *value.names],
            value.data,
            token=claim.token,
            claimed=claim.time,
            until=claim.at(value.ends),
            done=partial(self.count, lookup.metric),
        )

    def _decode(
        self, lookup: SharedLookup[T], value: bytes | None, seconds: float, sent: float
    ) -> T | None:
        """Read a value that expires in *seconds*, according to a command sent at *sent*.

        A value has two ages: by the wall clock of the replica that wrote it, and by the store's
        expiry. The greater counts, so neither a wrong clock nor a slow command makes it younger.
        """
        if value is None:
            return None
        now, wall = self.clock()

        def moment(made: float, lifetime: float) -> float:
            if seconds < 0:
                raise ForeignError  # it never expires
            return sent - max(wall - made - (now - sent), lifetime - seconds, 0.0)

        try:
            return lookup.decode(value, moment)
        except (ForeignError, PurgedError) as exc:
            result = "purged" if isinstance(exc, PurgedError) else "dropped"
            self.count(lookup.metric, result)
            self.store.drop(lookup.name)
            return None
