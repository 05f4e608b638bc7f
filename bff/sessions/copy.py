"""Copies of sessions as they go to browsers, and the ages up to which they may be used."""

from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

from bff import digests
from bff.limits.hot_sessions import NO_SHARE, Share
from bff.response import copy_head

_OVERHEAD = 500
"""Bytes of memory that a copy takes beside its body, head and ids; a test measures it."""
Key = tuple[str, str]
"""Environment and session id; the id has either form."""


class State(Enum):
    """The permitted use of a copy, by its age."""

    FRESH = auto()
    """The gateway answers with it."""
    STALE = auto()
    """The gateway answers with it and refreshes it in the background."""
    STALE_IF_ERROR = auto()
    """The gateway answers with it only if the load of a newer copy fails."""
    EXPIRED = auto()


@dataclass(slots=True, eq=False)
class Copy:
    """A projected session as it goes to browsers."""

    environment: str
    id: str
    external_id: str | None
    body: bytes
    """The encoded projection."""
    closed: bool
    loaded: float
    """Seconds on the clock that never jumps, as all times of this module."""
    etag: bytes = field(init=False)
    head: bytes = field(init=False)
    """The header lines that depend on the copy alone."""
    retry_at: float = -inf
    """The time before which no load starts, because the last one failed."""
    share: Share = NO_SHARE
    """The share of the caller for whom the session was last counted as hot."""
    hot_until: float = -inf
    """When it has to be counted again."""
    touched: bool = False
    """Whether a request read it after it was last considered for eviction."""
    generation: int = 0
    """The purge generation when its load began."""

    def __post_init__(self) -> None:
        self.etag = digests.etag(self.body)
        self.head = copy_head(self.etag)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys of the cache that lead to it."""
        if self.external_id is None:
            return ((self.environment, self.id),)
        return ((self.environment, self.id), (self.environment, self.external_id))

    @property
    def size(self) -> int:
        """Approximate bytes of memory that it takes."""
        ids = len(self.id) + len(self.external_id or "")
        return len(self.body) + len(self.head) + 4 * ids + _OVERHEAD


@dataclass(slots=True, kw_only=True, eq=False)
class NegativeEntry:
    """Remembers that upstream has no session with this id."""

    environment: str
    id: str
    until: float
    touched: bool = False
    external_id: None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys of the cache that lead to it."""
        return ((self.environment, self.id),)

    @property
    def size(self) -> int:
        """Approximate bytes of memory that it takes."""
        return 4 * len(self.id) + _OVERHEAD


@dataclass(frozen=True, kw_only=True)
class Ages:
    """Seconds that bound each use of a copy: `closed_ttl` is the `ttl` of a closed session.

    Both stale times begin when the copy is no longer fresh. `max_stretch` bounds the stretch.
    """

    ttl: float
    closed_ttl: float
    stale_while_revalidate: float
    stale_if_error: float
    negative_ttl: float
    max_stretch: float = inf

    def fresh(self, copy: Copy, now: float, stretched: float) -> bool:
        """Whether *copy* is `State.FRESH`; cheaper than `state`."""
        age = now - copy.loaded
        return age < (self.closed_ttl if copy.closed else self.ttl) or (
            age < stretched and age < self.max_stretch
        )

    def state(self, copy: Copy, now: float, stretched: float) -> State:
        """Return the permitted use of *copy*. It is fresh for at least *stretched* seconds."""
        age = now - copy.loaded - self._fresh_for(copy, stretched)
        if age < 0:
            return State.FRESH
        if age < self.stale_while_revalidate:
            return State.STALE
        return State.STALE_IF_ERROR if age < self.stale_if_error else State.EXPIRED

    def fresh_until(self, copy: Copy, stretched: float) -> float:
        """When *copy* is no longer `State.FRESH`."""
        return copy.loaded + self._fresh_for(copy, stretched)

    def lifetime(self, copy: Copy, stretched: float) -> float:
        """Seconds after its load for which *copy* may be of use."""
        stale = max(self.stale_while_revalidate, self.stale_if_error)
        return self._fresh_for(copy, stretched) + stale

    def longest_fresh(self, stretched: float) -> float:
        """Seconds for which any copy is fresh, at most."""
        return max(self.ttl, self.closed_ttl, min(stretched, self.max_stretch))

    def _fresh_for(self, copy: Copy, stretched: float) -> float:
        ttl = self.closed_ttl if copy.closed else self.ttl
        return max(ttl, min(stretched, self.max_stretch))
