"""The timers of a connection: deadlines, and the time for which it may be idle."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Deadline:
    """One timer; setting it again replaces it."""

    _loop: asyncio.AbstractEventLoop
    _timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether it was set, and not cancelled."""
        return self._timer is not None

    def set(self, seconds: float, then: Callable[[], None]) -> None:
        """Call *then* after *seconds*, unless it is set again or cancelled before."""
        self.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def cancel(self) -> None:
        """Call nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(slots=True, eq=False)
class IdleTimer:
    """Notices a connection that is idle for too long.

    A connection has one timer, which is set again when it expires: a new timer for each request
    costs as much as a decision.
    """

    _loop: asyncio.AbstractEventLoop
    _seconds: float
    """The time for which it may be idle."""
    _then: Callable[[], None]
    """Called after it."""
    _since: float | None = None
    _timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Note that the connection is idle from now on."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._check)

    def stop(self) -> None:
        """Note that it is not idle any more."""
        self._since = None

    def cancel(self) -> None:
        """Notice nothing: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        if self._since is None:
            return
        left = self._since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            self._then()
