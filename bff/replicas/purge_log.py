"""The purges that this replica knows, by the store's clock. No I/O.

A copy in the store is purged if its load was claimed before the purge of one of its ids. This does
not depend on the policy, the version or the id under which the copy is stored.
"""

from collections import deque
from collections.abc import Iterable

Key = tuple[str, str]
"""Origin and session id."""


class PurgeLog:
    """The last purges.

    Args:
        max_kept: the purges that are remembered. Beyond it every copy that is older than the
            forgotten purge counts as purged: purging too much is safe.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._times: dict[Key, int] = {}
        self._order: deque[tuple[int, Key]] = deque()
        self._forgotten = -1
        """Microseconds of the last purge that is forgotten."""

    def add(self, origin: str, id_: str, number: str) -> None:
        """Remember a purge; *number* is that of its announcement, which begins with its time."""
        # Milliseconds are the store's resolution: a claim of the same millisecond counts as older.
        time = 1000 * (int(number.partition("-")[0]) + 1)
        key = (origin, id_)
        self._times[key] = max(time, self._times.get(key, time))
        self._order.append((time, key))
        if len(self._order) > self._max_kept:
            time, key = self._order.popleft()
            self._forgotten = max(self._forgotten, time)
            if self._times.get(key) == time:
                del self._times[key]

    def is_purged(self, origin: str, ids: Iterable[str], claimed: int) -> bool:
        """Whether a session was purged since its load was *claimed* (microseconds)."""
        return claimed < self._forgotten or any(
            claimed < self._times.get((origin, id_), -1) for id_ in ids
        )
