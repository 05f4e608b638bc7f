"""Rate limits: each key has a window of requests, whole or leased from a provider. No I/O.

Only this module moves a counter. Times are seconds on the monotonic clock.
"""

import asyncio
import sys
from collections.abc import Hashable
from math import inf
from typing import Final, Protocol

from cachetools import FIFOCache

MAX_RESET: Final = 60.0
"""Seconds. A later reset of upstream counts as this, and no answer names a later one, because the
official SDK waits until the reset."""
LEASE_DIVISOR: Final = 4
"""Replicas together hold at most this part (a quarter) of a window's remaining quota unused."""
ALONE_SECONDS: Final = 1.0
"""Seconds for which this process counts a window alone after a lease failed or was late. So the
request that waited is decided, and the next ones do not wait for another lease."""
_NEVER: Final = sys.maxsize


class QuotaProvider(Protocol):
    """Grants quota of windows that several replicas share, one lease at a time."""

    @property
    def up(self) -> bool:
        """Whether quota can be leased now."""

    @property
    def replicas(self) -> int:
        """The number by which a limit is divided while no quota can be leased."""

    def lease(self, window: "Window", want: int) -> "asyncio.Task[None]":
        """Start to lease *want* more; the task calls the window's `grant` or `lease_failed`."""


class LeasePending(Exception):
    """Nothing was counted, because quota is not leased yet: await *lease*, then decide again.

    If that takes too long, call the window's `count_alone` first.
    """

    def __init__(self, window: "Window", lease: "asyncio.Task[None]") -> None:
        super().__init__(window.limiter.name)
        self.window = window
        self.lease = lease


class Window:
    """The use of a limit by one key.

    `granted` is the quota that the key may use in this process. Without a provider it is the whole
    limit. With one it is the quota leased until now, or this replica's share while the provider is
    down or late.
    """

    headers = True
    """Whether answers carry header lines about this window."""

    __slots__ = (
        "_alone_until", "_borrowed", "_leased", "ends", "granted", "key", "leasing", "limiter",
        "remaining_elsewhere", "renew_at", "used", "waiting",
    )  # fmt: skip

    def __init__(self, limiter: "Limiter", key: Hashable, ends: float, *, leased: bool) -> None:
        self.limiter = limiter
        self.key = key
        self.ends = ends
        self.used = 0
        self.granted = 0 if leased else limiter.limit
        self.remaining_elsewhere = limiter.limit - self.granted
        """The quota that the provider had left after the last lease."""
        self.renew_at = 0 if leased else _NEVER
        """The number of used requests at which more quota is leased."""
        self.leasing: asyncio.Task[None] | None = None
        self.waiting = 0
        """Requests that wait for the current lease."""
        self._leased = False
        self._alone_until = -inf
        self._borrowed = 0
        """The part of `granted` that was used without a lease."""

    def charge(self) -> None:
        """Count one more request."""
        self.used += 1

    def refund(self) -> None:
        """Take back one request that this window counted."""
        self.used -= 1

    @property
    def exceeded(self) -> bool:
        """Whether more was counted than the limit allows."""
        return self.used > self.granted

    @property
    def first(self) -> bool:
        """Whether the last request counted is the first one above the limit."""
        return self.used == self.granted + 1

    @property
    def exhausted(self) -> bool:
        """Whether the next request exceeds the limit."""
        return self.used >= self.granted

    def renew_lease(self, provider: QuotaProvider, now: float) -> None:
        """Lease more quota in the background, or wait for it if none is left.

        Raises:
            LeasePending: nothing is left before the lease ends.
        """
        if not provider.up or now < self._alone_until:
            share = max(1, self.limiter.limit // provider.replicas)
            if self.granted < share:
                self._borrowed += share - self.granted
                self.granted = share
            return
        if self._borrowed:
            # The next lease pays for what was used without one; refused requests used nothing.
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
            raise LeasePending(self, self.leasing)

    def _share(self, provider: QuotaProvider) -> int:
        if self.limiter.exact:
            return 1
        return max(1, self.remaining_elsewhere // (LEASE_DIVISOR * provider.replicas))

    def grant(
        self, provider: QuotaProvider, want: int, given: int, remaining_elsewhere: int, ends: float
    ) -> None:
        """Add the *given* part of the *want* that was to be leased, valid until *ends*."""
        self.leasing = None
        if self._leased and ends - self.ends > self.limiter.seconds / 2:
            # The provider began a new window during the lease, so this one has ended.
            self.limiter.renew(self, ends).grant(provider, want, given, remaining_elsewhere, ends)
            return
        self._leased = True
        self.granted += given
        self.remaining_elsewhere = remaining_elsewhere
        self.ends = ends
        self.renew_at = _NEVER if given < want else self.granted - self._share(provider) // 2

    def lease_failed(self, now: float) -> None:
        """End the current lease without a grant."""
        self.leasing = None
        self.count_alone(now)

    def count_alone(self, now: float) -> None:
        """Count without a lease for a while: requests waited for one as long as they may."""
        self._alone_until = now + ALONE_SECONDS

    @property
    def remaining(self) -> int:
        """The requests that are left in all replicas together."""
        return max(0, self.granted - self.used) + self.remaining_elsewhere

    def reset(self, now: float) -> float:
        """Return the seconds until the window ends, at most `MAX_RESET`."""
        seconds = self.ends - now
        if seconds > MAX_RESET:
            return MAX_RESET
        return seconds if seconds > 0 else 0.0


class Limiter:
    """Counts requests by key; a window begins with a key's first request and lasts *seconds*.

    Args:
        name: the limit's name in headers and metrics.
        max_keys: the windows kept at most; beyond it the oldest one is dropped.
        provider: leases the quota of windows; without one each window has the whole limit.
        exact: lease each request's quota alone, so that no replica holds quota that another needs.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        seconds: float,
        *,
        max_keys: int = 100_000,
        provider: QuotaProvider | None = None,
        exact: bool = False,
    ) -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self.exact = exact
        self._provider = provider
        # All windows have the same length, so they end in the order in which they were inserted.
        self._windows: FIFOCache[Hashable, Window] = FIFOCache(max_keys)

    def look(self, key: Hashable, now: float) -> Window:
        """Return the window of *key*, or `UNLIMITED_WINDOW` if nothing was counted yet; begin none.

        Raises:
            LeasePending: quota has to be leased first.
        """
        window = self._windows.get(key)
        if window is None or window.ends <= now:
            return UNLIMITED_WINDOW
        if window.used >= window.renew_at and self._provider is not None:
            window.renew_lease(self._provider, now)
        return window

    def charge(self, key: Hashable, now: float) -> Window:
        """Count one request of *key*.

        Raises:
            LeasePending: quota has to be leased first; nothing was counted.
        """
        try:
            window = self._windows[key]
        except KeyError:
            window = self._begin(key, now)
        if window.ends <= now:
            window = self._begin(key, now)
        if window.used >= window.renew_at and self._provider is not None:
            window.renew_lease(self._provider, now)
        # `Window.charge`, written out: each hit charges two windows.
        window.used += 1
        return window

    def refund(self, key: Hashable) -> None:
        """Take back the last charge of *key*."""
        if window := self._windows.get(key):
            window.refund()

    def renew(self, window: Window, ends: float) -> Window:
        """Replace *window* by a new one, which begins with what was used beyond the grants.

        The new window is a new object, because a later refund belongs to the old one.
        """
        new = Window(self, window.key, ends, leased=True)
        new.used = max(0, window.used - window.granted)
        if self._windows.get(window.key) is window:
            self._put(new)
        return new

    def _begin(self, key: Hashable, now: float) -> Window:
        for _ in range(2):  # two ended windows leave for each new one, so no sweep is needed
            if self._windows and next(iter(self._windows.values())).ends <= now:
                self._windows.popitem()
        window = Window(self, key, now + self.seconds, leased=self._provider is not None)
        self._put(window)
        return window

    def _put(self, window: Window) -> None:
        self._windows.pop(window.key, None)  # so that the new window becomes the newest
        self._windows[window.key] = window


class UnlimitedWindow(Window):
    """The window of a limit that is off: it counts nothing and is never exceeded."""

    __slots__ = ()
    headers = False

    def charge(self) -> None:
        """Count nothing."""

    def refund(self) -> None:
        """Take nothing back."""


class Unlimited(Limiter):
    """A limit that is off: all keys have `UNLIMITED_WINDOW`."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sys.maxsize, inf)

    def charge(self, key: Hashable, now: float) -> Window:  # noqa: ARG002
        """Return `UNLIMITED_WINDOW`."""
        return UNLIMITED_WINDOW

    look = charge


UNLIMITED_WINDOW: Final = UnlimitedWindow(Unlimited("unlimited"), None, inf, leased=False)
"""The window of every limit that is off, and of a request that no limit has counted yet."""
