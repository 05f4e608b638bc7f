"""Counts hot sessions by caller, and stretches the freshness of their copies. No I/O.

A session is hot while browsers request it. If the budget cannot load all hot sessions once a TTL,
their copies count as fresh for longer. Callers get equal parts of the budget, and what a caller
does not need goes to the others. So the caller with the most hot sessions gets the oldest copies.
"""

from collections.abc import Hashable
from math import inf
from typing import Final

EPOCH: Final = 30.0
"""Seconds. A session requested within an epoch is hot: twice a usual poll interval."""
_SECONDS: Final = 1.0
"""Seconds between two divisions of the budget, unless many more sessions become hot."""
_GROWTH: Final = 8
"""The budget is divided again at once if the hot sessions grew by one in this many."""


class Share:
    """The hot sessions of one caller, and the part of the budget that loads them.

    Attributes:
        stretch: seconds for which their copies count as fresh, so that their loads fit the budget.
    """

    __slots__ = ("before", "hot", "stretch")

    def __init__(self) -> None:
        self.hot = 0
        """Sessions counted in this epoch."""
        self.before = 0
        """Sessions counted in the epoch before."""
        self.stretch = 0.0

    @property
    def size(self) -> int:
        """The number of the caller's hot sessions."""
        return max(self.hot, self.before)


NO_SHARE: Final = Share()
"""The share of a session that counts for no caller."""


class HotSessions:
    """The hot sessions of one environment; each of them is in the share of one caller.

    Args:
        rate: loads a second; infinite without a budget.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._shares: dict[Hashable, Share] = {}
        self.epoch_ends = -inf
        """When a session has to be counted again to stay hot."""
        self._divided = -inf
        self._level = inf
        """Loads a second that one caller gets, at most."""
        self._hot = 0
        self._hot_divided = 0
        self.stretch = 0.0
        """The longest stretch of any caller, now or a second ago: each load at a store reads it."""

    def count(self, share: Share, caller: Hashable, now: float, ttl: float) -> Share:
        """Count a session that is requested for the first time in this epoch.

        It stays in its *share* while it is hot; otherwise *caller* gets it. Without a stretch a
        copy is fresh for *ttl* seconds. Returns the share that the session is in now.
        """
        if now >= self.epoch_ends:
            self._begin_epoch(now)
        if share is NO_SHARE or not share.size:
            share = self._shares.setdefault(caller, Share())
        share.hot += 1
        self._hot += 1
        self._update(share, now, ttl)
        return share

    def take_over(self, share: Share, caller: Hashable, now: float, ttl: float) -> Share:
        """Move a session that *caller* requests to its share, if that has fewer sessions.

        So a session that two callers request is as fresh as the sessions of the caller with fewer.
        """
        own = self._shares.get(caller)
        if own is share or (own.size if own else 0) + 1 >= share.size:
            return share
        if own is None:
            own = self._shares[caller] = Share()
        share.hot = max(0, share.hot - 1)
        share.before = max(0, share.before - 1)
        own.hot += 1
        self._update(own, now, ttl)
        return own

    def stretch_of(self, caller: Hashable) -> float:
        """Return the stretch of the caller's own sessions."""
        return self._shares.get(caller, NO_SHARE).stretch

    def _begin_epoch(self, now: float) -> None:
        """Begin the epoch of *now*, and forget callers without hot sessions."""
        follows = now < self.epoch_ends + EPOCH
        self.epoch_ends = (now // EPOCH + 1) * EPOCH
        for share in self._shares.values():
            share.before, share.hot = (share.hot if follows else 0), 0
        self._shares = {caller: share for caller, share in self._shares.items() if share.before}
        self.stretch = max((share.stretch for share in self._shares.values()), default=0.0)
        self._hot = self._hot_divided = 0
        self._divided = -inf

    def _update(self, share: Share, now: float, ttl: float) -> None:
        grown = self._hot - self._hot_divided > self._hot_divided // _GROWTH
        if grown or now >= self._divided + _SECONDS:
            self._divide(now, ttl)
        share.stretch = share.size / self._level
        self.stretch = max(self.stretch, share.stretch)

    def _divide(self, now: float, ttl: float) -> None:
        """Divide the budget into equal parts, but give no caller more than its sessions need."""
        self._divided, self._hot_divided = now, self._hot
        if self._rate == inf:
            return
        shares = sorted(self._shares.values(), key=_size)
        left, self._level = self._rate, inf
        for position, share in enumerate(shares):
            level = left / (len(shares) - position)
            needed = share.size / ttl if ttl else inf
            if needed > level:
                self._level = level
                break
            left -= needed
        for share in shares:
            share.stretch = share.size / self._level
        self.stretch = shares[-1].stretch if shares else 0.0


def _size(share: Share) -> int:
    return share.size
