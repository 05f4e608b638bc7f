"""One shared copy of each session: positive or negative, bounded by bytes, with its loads.

The cache knows neither HTTP nor tokens: an entry is some bytes under two ids. Time is seconds on a
clock that never jumps.

Mutable state: `_entries` by id and `_ring` by age, changed by `_insert` and `_remove` only;
`loads`, the load in flight for each id; and `_purged`, the last purges, changed by `purge` and
`clear`. The cache remembers a purge even if no load is in flight. An introspection, a copy of
another replica, or a waiting request may still bring an older copy.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

from bff.copies.single_flight import SingleFlight
from bff.errors import Refusal
from bff.sessions.copy import Ages, Copy, Key, NegativeEntry, State

_MAX_PURGED: Final = 10_000
"""Purged keys that are remembered. Beyond it, every copy that is older than a forgotten purge
counts as purged: purging too much is safe."""


class Cache:
    """The copies of one process.

    Args:
        ages: how old copies may grow.
        max_bytes: bound on the entries; beyond it, those that were not read lately are evicted.
        spawn: runs a load to its end, even if every request that waits for it leaves.
        on_mismatch: called after a copy was found under the key of another session and dropped.
        on_copy: called with each copy that is kept.
    """

    def __init__(
        self,
        ages: Ages,
        *,
        max_bytes: int,
        spawn: Callable[[Coroutine[Any, Any, Copy | Refusal]], "asyncio.Task[Copy | Refusal]"],
        on_mismatch: Callable[[], None],
        on_copy: Callable[[Copy], None],
    ) -> None:
        self.ages = ages
        self.bytes = 0
        self.max_bytes = max_bytes
        self._on_mismatch = on_mismatch
        self._on_copy = on_copy
        self._entries: dict[Key, Copy | NegativeEntry] = {}
        # In the order of arrival. An entry that was read gets a second round (CLOCK), so a hit
        # sets a flag and reorders nothing. (cachetools has no CLOCK; its LRU reorders at a hit.)
        self._ring: OrderedDict[Copy | NegativeEntry, None] = OrderedDict()
        self._purged: dict[Key, int] = {}
        self._generation = 0
        self._cleared = 0
        self.loads: SingleFlight[Key, Copy | Refusal] = SingleFlight(spawn)

    def __len__(self) -> int:
        return len(self._ring)

    def find(self, environment: str, id_: str, now: float) -> Copy | NegativeEntry | None:
        """Find the entry of a session under either of its ids."""
        entry = self._entries.get((environment, id_))
        if entry is None:
            return None
        if id_ not in (entry.id, entry.external_id) or entry.environment != environment:
            self._remove(entry)
            self._entries.pop((environment, id_), None)
            self._on_mismatch()
            return None
        if type(entry) is NegativeEntry and entry.until <= now:
            self._remove(entry)
            return None
        entry.touched = True
        return entry

    @property
    def purge_generation(self) -> int:
        """Purge counter. A load reads it before the fetch; `put` discards what was purged since."""
        return self._generation

    def is_purged(self, copy: Copy) -> bool:
        """Whether the session was purged since the load of *copy* began; ask after every wait."""
        return self._is_purged(copy.keys, copy.generation)

    def is_usable(self, copy: Copy, now: float) -> bool:
        """Whether a copy that was found before a wait may still be served after it."""
        state = self.ages.state(copy, now, copy.share.stretch)
        return state is not State.EXPIRED and not self.is_purged(copy)

    def put(self, copy: Copy) -> None:
        """Keep *copy* under both its ids, and drop the entries that it replaces.

        A copy is discarded if one of its ids was purged since its load began: it may be older.
        """
        keys = copy.keys
        if self._is_purged(keys, copy.generation):
            return
        before = self._entries.get(keys[0])
        if isinstance(before, Copy):
            # A session counts as hot once in an epoch, however often it is loaded.
            copy.share, copy.hot_until = before.share, before.hot_until
        self._insert(keys, copy)
        self._on_copy(copy)

    def put_negative(self, environment: str, id_: str, now: float, purge_generation: int) -> None:
        """Remember that there is no such session, and drop its entry."""
        self.drop(environment, id_)
        entry = NegativeEntry(environment=environment, id=id_, until=now + self.ages.negative_ttl)
        if self.ages.negative_ttl > 0 and not self._is_purged(entry.keys, purge_generation):
            self._insert(entry.keys, entry)

    def purge(self, environment: str, id_: str) -> None:
        """Drop a session under both its ids, and discard the copy of a load in flight."""
        entry = self._entries.get((environment, id_))
        self._generation += 1
        for key in entry.keys if entry else ((environment, id_),):
            self.loads.forget(key)
            self._purged.pop(key, None)  # the assignment then makes it the newest
            self._purged[key] = self._generation
        if entry:
            self._remove(entry)
        while len(self._purged) > _MAX_PURGED:
            first = next(iter(self._purged))
            self._cleared = max(self._cleared, self._purged.pop(first))

    def clear(self, *, loads: bool) -> None:
        """Drop every entry. If *loads*, discard the copies of loads in flight too."""
        self._entries.clear()
        self._ring.clear()
        self.bytes = 0
        if loads:
            self._generation += 1
            self._cleared = self._generation
            self.loads.forget_all()

    def _is_purged(self, keys: tuple[Key, ...], generation: int) -> bool:
        if self._cleared > generation:
            return True
        return bool(self._purged) and max(self._purged.get(key, 0) for key in keys) > generation

    def drop(self, environment: str, id_: str) -> None:
        """Drop a session under both its ids."""
        if entry := self._entries.get((environment, id_)):
            self._remove(entry)

    def has_usable(self, environment: str, now: float) -> bool:
        """Whether any copy of *environment* can still be served."""
        return any(
            type(entry) is Copy
            and entry.environment == environment
            and self.ages.state(entry, now, 0.0) is not State.EXPIRED
            for entry in reversed(self._ring)
        )

    def _insert(self, keys: tuple[Key, ...], new: Copy | NegativeEntry) -> None:
        for key in keys:
            if entry := self._entries.get(key):
                self._remove(entry)
        size = new.size
        if size > self.max_bytes:
            return
        for key in keys:
            self._entries[key] = new
        self._ring[new] = None
        self.bytes += size
        while self.bytes > self.max_bytes:
            oldest, _ = self._ring.popitem(last=False)
            self._ring[oldest] = None
            if oldest.touched and oldest is not new:
                oldest.touched = False
            else:
                self._remove(oldest)

    def _remove(self, entry: Copy | NegativeEntry) -> None:
        for key in entry.keys:
            if self._entries.get(key) is entry:
                del self._entries[key]
        if entry in self._ring:
            del self._ring[entry]
            self.bytes -= entry.size
