"""A projected session as it goes to browsers, and how long each copy may be used."""

from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from bff.digests import etag
from bff.response import copy_head

_OVERHEAD = 500
"""Bytes that a copy costs beyond its body and head, measured; see `tests/copies/test_cache.py`."""
Key = tuple[str, str]
"""Environment and session id, in either form."""


class State(Enum):
    """What a copy of some age may be used for."""

    FRESH = auto()
    STALE = auto()
    """To be answered, and refreshed in the background."""
    STALE_IF_ERROR = auto()
    """To be answered only when loading a new one fails."""
    EXPIRED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Copy:
    """A projected session as it goes to browsers."""

    environment: str
    id: str
    external_id: str | None
    etag: bytes
    head: bytes
    """Header lines that depend on nothing but the copy."""
    body: bytes
    closed: bool
    loaded: float
    retry: float = -inf
    """Not to be loaded again before, because the last attempt failed."""
    epoch: int = -1
    """When it was last counted as hot (`limits.Budget`)."""
    touched: bool = False
    """Read since it last came up for eviction."""

    @property
    def keys(self) -> tuple[Key, ...]:
        """Where it stands in the cache."""
        if self.external_id is None:
            return ((self.environment, self.id),)
        return ((self.environment, self.id), (self.environment, self.external_id))

    @property
    def size(self) -> int:
        """Bytes it costs to keep, about."""
        ids = len(self.id) + len(self.external_id or "")
        return len(self.body) + len(self.head) + 4 * ids + _OVERHEAD


@dataclass(slots=True, kw_only=True, eq=False)
class NegativeEntry:
    """Upstream said that there is no such session."""

    environment: str
    id: str
    until: float
    touched: bool = False
    external_id: None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """Where it stands in the cache."""
        return ((self.environment, self.id),)

    @property
    def size(self) -> int:
        """Bytes it costs to keep, about."""
        return 4 * len(self.id) + _OVERHEAD


@dataclass(frozen=True, kw_only=True)
class Ages:
    """How old a copy may grow, in seconds, for each use."""

    ttl: float
    closed_ttl: float
    stale_while_revalidate: float
    stale_if_error: float
    negative_ttl: float

    def fresh(self, copy: Copy, now: float, stretched: float) -> bool:
        """Whether *copy* may be answered as it is; see `state`."""
        age = now - copy.loaded
        return age < stretched or age < (self.closed_ttl if copy.closed else self.ttl)

    def state(self, copy: Copy, now: float, stretched: float) -> State:
        """Tell what *copy* may be used for; *stretched* is the least time it counts as fresh."""
        age = now - copy.loaded - max(self.closed_ttl if copy.closed else self.ttl, stretched)
        if age < 0:
            return State.FRESH
        if age < self.stale_while_revalidate:
            return State.STALE
        return State.STALE_IF_ERROR if age < self.stale_if_error else State.EXPIRED


def make_copy(
    environment: str,
    id_: str,
    external_id: str | None,
    body: bytes,
    closed: bool,  # noqa: FBT001
    loaded: float,
) -> Copy:
    """Make a copy of a projected and encoded *body*."""
    tag = etag(body)
    return Copy(
        environment=environment,
        id=id_,
        external_id=external_id,
        etag=tag,
        head=copy_head(tag),
        body=body,
        closed=closed,
        loaded=loaded,
    )
