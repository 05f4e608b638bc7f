"""The purges that this replica knows, by the store's clock. No I/O.

A copy in the store is purged if its load was claimed before the purge of one of its ids. This does
not depend on the policy, the version or the id under which the copy is stored.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

Key = tuple[str, str]
"""Origin and session id."""
Time = tuple[int, int]
"""Milliseconds, and the number of the announcement among those of the same millisecond."""
_NEVER: Final = (-1, 0)


class PurgeLog:
    """The last purges.

    Args:
        max_kept: the purges that are remembered. Beyond it every copy that is older than the
            forgotten purge counts as purged: purging too much is safe.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._times: dict[Key, Time] = {}
        self._order: deque[tuple[Time, Key]] = deque()
        self._forgotten = _NEVER
        """The time of the newest purge that is forgotten."""

    def add(self, origin: str, id_: str, number: str) -> bool:
        """Remember a purge; *number* is that of its announcement, which begins with its time.

        Returns:
            Whether it is new.
        """
        time, key = _time(number), (origin, id_)
        if self._times.get(key, _NEVER) >= time:
            return False
        self._times[key] = time
        self._order.append((time, key))
        if len(self._order) > self._max_kept:
            time, key = self._order.popleft()
            self._forgotten = max(self._forgotten, time)
            if self._times.get(key) == time:
                del self._times[key]
        return True

    def forget(self, number: str) -> None:
        """Count every copy as purged whose load was claimed before the announcement *number*."""
        self._forgotten = max(self._forgotten, _time(number))

    def is_purged(self, origin: str, ids: Iterable[str], claimed: int) -> bool:
        """Whether a session was purged since its load was *claimed* (microseconds)."""
        times = (self._times.get((origin, id_), _NEVER) for id_ in ids)
        # Milliseconds are the store's resolution: a claim of the same millisecond counts as older.
        return claimed < 1000 * (max(self._forgotten, *times)[0] + 1)


def _time(number: str) -> Time:
    milliseconds, _, count = number.partition("-")
    return int(milliseconds), int(count)
