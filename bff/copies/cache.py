"""One shared copy per session: fresh, stale, joined, negative, bounded by bytes.

Knows neither HTTP nor tokens: a copy is some bytes under two ids, and whoever asks decides what may
be done with it. Time is seconds on a clock that never jumps.

The mutable state is `_kept` and `_ring` (what is known, by id and by age), changed by `_insert` and
`_remove` only, `_flights` (the load under way for each id), changed by `fly` and `purge` only, and
`_purged` (what loads under way must not bring back), changed by `purge`, `clear` and `_land`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from bff.sessions.copy import Ages, Copy, Key, NegativeEntry, State

_MAX_PURGED = 10_000
"""Purges remembered while loads are under way; beyond them, none of those loads is kept."""


OutcomeT = TypeVar("OutcomeT")


class Cache(Generic[OutcomeT]):
    """The copies of one process, and the loads under way.

    Args:
        ages: how old copies may grow.
        max_bytes: bound on what is kept; beyond it, what was not read lately goes first.
        spawn: runs a load to its end, whoever leaves meanwhile.
        on_mismatch: called when a copy stood under a key that is not its own; it is dropped.
    """

    def __init__(
        self,
        ages: Ages,
        *,
        max_bytes: int,
        spawn: Callable[[Coroutine[Any, Any, OutcomeT]], "asyncio.Task[OutcomeT]"],
        on_mismatch: Callable[[], None] = lambda: None,
    ) -> None:
        self.ages = ages
        self.bytes = 0
        self.max_bytes = max_bytes
        self._spawn = spawn
        self._on_mismatch = on_mismatch
        self._kept: dict[Key, Copy | NegativeEntry] = {}
        # In the order of arrival; what was read since gets a second round (CLOCK), so that a hit
        # costs setting a flag and no reordering.
        self._ring: OrderedDict[Copy | NegativeEntry, None] = OrderedDict()
        self._flights: dict[Key, asyncio.Task[OutcomeT]] = {}
        self._aloft = 0
        self._purges = 0
        self._cleared = 0
        self._purged: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def find(self, environment: str, id_: str, now: float) -> Copy | NegativeEntry | None:
        """Find what is known of a session under either of its ids."""
        found = self._kept.get((environment, id_))
        if found is None:
            return None
        if id_ not in (found.id, found.external_id) or found.environment != environment:
            self._remove(found)
            self._kept.pop((environment, id_), None)
            self._on_mismatch()
            return None
        if type(found) is NegativeEntry and found.until <= now:
            self._remove(found)
            return None
        found.touched = True
        return found

    @property
    def mark(self) -> int:
        """What a load takes before it asks, and brings to `put`: how many purges there were."""
        return self._purges

    def put(self, copy: Copy, mark: int | None = None) -> None:
        """Keep *copy* under both its ids, in place of whatever was known there.

        Not if either was purged since *mark*: what was asked for before a purge is what it is for.
        Without a mark, the copy is as of now.
        """
        if self._is_purged(copy.keys, mark):
            return
        before = self._kept.get(copy.keys[0])
        if isinstance(before, Copy):
            copy.epoch = before.epoch  # a session is hot once, however often it is loaded
        self._insert(copy)

    def put_missing(self, environment: str, id_: str, now: float, mark: int | None = None) -> None:
        """Remember that there is no such session, and forget what was known of it."""
        self.drop(environment, id_)
        missing = NegativeEntry(environment=environment, id=id_, until=now + self.ages.negative_ttl)
        if self.ages.negative_ttl > 0 and not self._is_purged(missing.keys, mark):
            self._insert(missing)

    def purge(self, environment: str, id_: str) -> None:
        """Forget a session under both its ids, whatever a load under way brings of it."""
        known = self._kept.get((environment, id_))
        self._purges += 1
        for key in known.keys if known else ((environment, id_),):
            self._flights.pop(key, None)
            self._purged[key] = self._purges
        if known:
            self._remove(known)
        if len(self._purged) > _MAX_PURGED:
            self._purged.clear()
            self._cleared = self._purges

    def clear(self, *, loads: bool) -> None:
        """Forget everything kept and, if *loads*, what loads under way bring."""
        for one in (self._kept, self._ring):
            one.clear()
        self.bytes = 0
        if loads:
            self._purges += 1
            self._cleared = self._purges
            self._flights.clear()

    def _is_purged(self, keys: tuple[Key, ...], mark: int | None) -> bool:
        if mark is None:
            return False
        return self._cleared > mark or any(self._purged.get(key, 0) > mark for key in keys)

    def drop(self, environment: str, id_: str) -> None:
        """Forget a session under both its ids."""
        if known := self._kept.get((environment, id_)):
            self._remove(known)

    def flight(self, environment: str, id_: str) -> "asyncio.Task[OutcomeT] | None":
        """The load under way for a session, to be joined (`asyncio.shield` it)."""
        return self._flights.get((environment, id_))

    def fly(
        self, environment: str, id_: str, load: Coroutine[Any, Any, OutcomeT]
    ) -> "asyncio.Task[OutcomeT]":
        """Start *load* as the one load of a session."""
        key = (environment, id_)
        task = self._flights[key] = self._spawn(load)
        self._aloft += 1
        task.add_done_callback(lambda task: self._land(key, task))
        return task

    def _land(self, key: Key, task: "asyncio.Task[OutcomeT]") -> None:
        if self._flights.get(key) is task:  # else it was purged, and another may have begun
            del self._flights[key]
        self._aloft -= 1
        if not self._aloft:
            self._purged.clear()  # nobody is left who could bring anything back

    @property
    def flights(self) -> int:
        """How many loads are under way."""
        return self._aloft

    def usable(self, environment: str, now: float) -> bool:
        """Whether any copy of *environment* could still be served."""
        return any(
            type(known) is Copy
            and known.environment == environment
            and self.ages.state(known, now, 0.0) is not State.EXPIRED
            for known in reversed(self._ring)
        )

    def _insert(self, new: Copy | NegativeEntry) -> None:
        for key in new.keys:
            if known := self._kept.get(key):
                self._remove(known)
        if new.size > self.max_bytes:
            return
        for key in new.keys:
            self._kept[key] = new
        self._ring[new] = None
        self.bytes += new.size
        while self.bytes > self.max_bytes:
            oldest, _ = self._ring.popitem(last=False)
            if oldest.touched and oldest is not new:
                oldest.touched = False
                self._ring[oldest] = None
            else:
                self._ring[oldest] = None
                self._remove(oldest)

    def _remove(self, known: Copy | NegativeEntry) -> None:
        for key in known.keys:
            if self._kept.get(key) is known:
                del self._kept[key]
        if known in self._ring:
            del self._ring[known]
            self.bytes -= known.size
