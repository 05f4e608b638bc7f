"""The two ids of sessions, remembered longer than their copies: ids never change."""

from typing import Final

from cachetools import LRUCache

from bff.sessions.copy import Key

MAX_BYTES: Final = 8 * 1024 * 1024
"""Bytes of memory for all pairs: enough for about 15,000 sessions with usual ids."""
_OVERHEAD: Final = 200
"""Bytes of memory that one direction of a pair takes beside its ids; a test measures it."""


class Pairs:
    """Pairs of ids, by environment and either id.

    Args:
        max_bytes: bound on the memory; beyond it, pairs that were not used lately are dropped.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._other: LRUCache[Key, tuple[str, str | None]] = LRUCache(
            max_bytes,
            getsizeof=lambda pair: _OVERHEAD + 2 * (len(pair[0]) + len(pair[1] or "")),
        )

    def __len__(self) -> int:
        return len(self._other)

    def learn(self, environment: str, id_: str, external_id: str | None) -> None:
        """Remember the two ids of a session."""
        self._keep(environment, id_, external_id)
        if external_id is not None:
            self._keep(environment, external_id, id_)

    def _keep(self, environment: str, id_: str, other: str | None) -> None:
        self._other[environment, id_] = id_, other

    def has(self, environment: str, id_: str) -> bool:
        """Whether a session's pair of ids is remembered."""
        return (environment, id_) in self._other

    def other(self, environment: str, id_: str) -> str | None:
        """Return the other id of a session; None if it has none or is not remembered."""
        key = environment, id_
        return self._other[key][1] if key in self._other else None

    def forget(self) -> None:
        """Drop all pairs, because the environments have moved to another upstream."""
        self._other.clear()
