"""Who is counted, and by what; and what may be spent upstream. Decides without I/O.

Time is seconds on a clock that never jumps.
"""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Hashable
from math import inf
from typing import Final, Protocol

MAX_RESET = 60.0
"""Seconds: the official SDK waits for a reset however far it is, so none is further away."""
PARTS = 4
"""All replicas together hold at most this part of what is left of a window without using it."""
_NEVER = sys.maxsize


class QuotaProvider(Protocol):
    """Gives out windows that several replicas share, a lease at a time."""

    @property
    def up(self) -> bool:
        """Whether it can be asked."""

    @property
    def replicas(self) -> int:
        """Among how many a limit is divided while it cannot."""

    def lease(self, window: "Window", want: int) -> "asyncio.Task[None]":
        """Begin to get *want* more, and then `grant` or `lease_failed` the window."""


class LeasePending(Exception):
    """Whether one more may be taken is not known here: await *lease*, and ask again."""

    def __init__(self, limiter: "Limiter", lease: "asyncio.Task[None]") -> None:
        super().__init__(limiter.name)
        self.limiter = limiter
        self.lease = lease


class Window:
    """What one key has used of its limit, until when.

    What may be used is what has been granted: without a lessor all of the limit, else what was
    leased so far, or this replica's share while the lessor is away.
    """

    headers = True
    """Whether an answer that it counted carries the rate limit's header lines."""

    __slots__ = (
        "_borrowed", "_leased", "ends", "granted", "key", "leasing", "limiter",
        "remaining_elsewhere", "renew_at", "used", "waiting",
    )  # fmt: skip

    def __init__(self, limiter: "Limiter", key: Hashable, ends: float, *, leased: bool) -> None:
        self.limiter = limiter
        self.key = key
        self.ends = ends
        self.used = 0
        self.granted = 0 if leased else limiter.limit
        self.remaining_elsewhere = limiter.limit - self.granted
        """What the lessor had left when it was last asked."""
        self.renew_at = 0 if leased else _NEVER
        """How many are used when more is leased."""
        self.leasing: asyncio.Task[None] | None = None
        self.waiting = 0
        self._leased = False
        self._borrowed = 0

    def charge(self) -> None:
        """Count one more."""
        self.used += 1

    def refund(self) -> None:
        """Give back one that was counted in this window."""
        self.used -= 1

    @property
    def exceeded(self) -> bool:
        """Whether more was taken than the limit gives."""
        return self.used > self.granted

    @property
    def first(self) -> bool:
        """Whether the last one taken was the first too many."""
        return self.used == self.granted + 1

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to take."""
        return self.used >= self.granted

    def more(self, provider: QuotaProvider) -> None:
        """See to it that one can be taken, or is known not to be there.

        Raises:
            Unleased: neither is known before a lease is.
        """
        if not provider.up:
            share = max(1, self.limiter.limit // provider.replicas)
            if self.granted < share:
                self._borrowed += share - self.granted
                self.granted = share
            return
        if self._borrowed:
            # What was spent without asking is leased afterwards; what was refused was not spent.
            self.used = min(self.used, self.granted)
            self.granted -= self._borrowed
            self._borrowed = 0
        if self.leasing is None:
            share = max(self._share(provider), self.waiting + 1)
            want, self.waiting = self.used - self.granted + share, 0
            if want <= 0:
                return
            self.leasing = provider.lease(self, want)
        if self.used >= self.granted:
            self.waiting += 1
            raise LeasePending(self.limiter, self.leasing)

    def _share(self, provider: QuotaProvider) -> int:
        return max(1, self.remaining_elsewhere // (PARTS * provider.replicas))

    def grant(
        self, provider: QuotaProvider, want: int, given: int, remaining_elsewhere: int, ends: float
    ) -> None:
        """Learn that *given* of *want* are leased until *ends*; others may still take the rest."""
        self.leasing = None
        if self._leased and ends - self.ends > self.limiter.seconds / 2:
            # A window has begun there while the lease was on its way: the former one's is void.
            self.limiter.renew(self, ends).grant(provider, want, given, remaining_elsewhere, ends)
            return
        self._leased = True
        self.granted += given
        self.remaining_elsewhere = remaining_elsewhere
        self.ends = ends
        self.renew_at = _NEVER if given < want else self.granted - self._share(provider) // 2

    def lease_failed(self) -> None:
        """Learn that nothing could be leased."""
        self.leasing = None

    @property
    def remaining(self) -> int:
        """What is left to take."""
        return max(0, self.granted - self.used) + self.remaining_elsewhere

    def reset(self, now: float) -> float:
        """Seconds until a new window, at most `MAX_RESET`."""
        seconds = self.ends - now
        if seconds > MAX_RESET:
            return MAX_RESET
        return seconds if seconds > 0 else 0.0


class Limiter:
    """Counts by key; a window begins with the first request of a key and lasts *seconds*.

    Args:
        name: what is counted, for headers and metrics.
        max_keys: bound on the keys remembered; beyond it the oldest window is forgotten.
        provider: where windows are leased from; without one each is this process's whole.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        seconds: float,
        *,
        max_keys: int = 100_000,
        provider: QuotaProvider | None = None,
    ) -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self._provider = provider
        self._max_keys = max_keys
        # Windows are all of one length, so the order of insertion is the order of expiry.
        self._windows: OrderedDict[Hashable, Window] = OrderedDict()

    def window(self, key: Hashable, now: float) -> Window:
        """Return the window of *key*; counts nothing.

        Raises:
            Unleased: it has to be leased first.
        """
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            window = self._open(key, now)
        if window.used >= window.renew_at and self._provider is not None:
            window.more(self._provider)
        return window

    def charge(self, key: Hashable, now: float) -> Window:
        """Count one for *key*; raises as `window` does, and then counts nothing."""
        window = self._windows.get(key)  # `window`, written out: each hit charges twice
        if window is None or window.ends <= now:
            window = self._open(key, now)
        if window.used >= window.renew_at and self._provider is not None:
            window.more(self._provider)
        window.used += 1
        return window

    def refund(self, key: Hashable) -> None:
        """Give back the last one counted for *key*."""
        if window := self._windows.get(key):
            window.refund()

    def renew(self, window: Window, ends: float) -> Window:
        """Begin another window in place of *window*, for what that has used beyond its grants.

        Another one and not the same, for what is given back later belongs to the former.
        """
        new = Window(self, window.key, ends, leased=True)
        new.used = max(0, window.used - window.granted)
        if self._windows.get(window.key) is window:
            self._windows[window.key] = new
            self._windows.move_to_end(window.key)
        return new

    def _open(self, key: Hashable, now: float) -> Window:
        windows = self._windows
        windows.pop(key, None)
        for _ in range(2):  # two out for one in: what has ended is gone soon, no sweep is needed
            if windows and (
                len(windows) >= self._max_keys or next(iter(windows.values())).ends <= now
            ):
                windows.popitem(last=False)
        leased = self._provider is not None
        window = windows[key] = Window(self, key, now + self.seconds, leased=leased)
        return window


class UnlimitedWindow(Window):
    """The window of a limit that is off: it counts nothing, never ends, and is never exceeded."""

    __slots__ = ()
    headers = False

    def charge(self) -> None:
        """Count nothing."""

    def refund(self) -> None:
        """Give nothing back: nothing was counted."""


class Unlimited(Limiter):
    """A limit that is off: every key has `UNLIMITED_WINDOW`."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sys.maxsize, inf)

    def window(self, key: Hashable, now: float) -> Window:  # noqa: ARG002
        """Return `UNLIMITED_WINDOW`."""
        return UNLIMITED_WINDOW

    charge = window

    def refund(self, key: Hashable) -> None:
        """Give nothing back: nothing was counted."""


UNLIMITED_WINDOW: Final = UnlimitedWindow(Unlimited("unlimited"), None, inf, leased=False)
"""Shared by every limit that is off, and by a request that no limit has counted yet."""
