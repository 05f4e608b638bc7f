"""The upstream budget: how many loads may start, and when. No I/O.

Times are seconds on the monotonic clock.
"""

from collections import deque
from math import inf
from typing import Final

from bff.limits.hot_sessions import HotSessions
from bff.limits.rate import MAX_RESET

_SAME_SECONDS: Final = 1.0
"""Seconds. Two answers describe one period of upstream's limit if its ends differ by less."""


class Budget:
    """The loads that the gateway may start for one environment.

    At most *limit* loads start in any *seconds*. The customer's own backend shares the limit that
    upstream reports, so the gateway leaves it the lower half. After a 429 no load starts.

    Args:
        limit: None for no limit of the gateway; upstream's limit counts all the same.
        name: what its calls are called in the store; budgets of one environment have different
            names.
    """

    def __init__(self, limit: int | None, seconds: float = 1.0, *, name: str = "spent") -> None:
        self.name = name
        self.limit = limit
        self.seconds = seconds
        self.replicas = 1
        """The number by which the limit is divided: 1, unless the store is down."""
        self._spent: deque[float] = deque(maxlen=limit)
        self._allowance = inf
        self._allowance_ends = -inf
        self._paused = -inf
        self.hot = HotSessions(inf if limit is None else limit / seconds)

    def wait(self, now: float, ahead: int = 0) -> float:
        """Return the seconds until one more load may start, after *ahead* others; 0 for now."""
        start = max(now, self._paused)
        if self._allowance < 1 + ahead and start < self._allowance_ends:
            start = self._allowance_ends
        if self.limit is not None:
            share = max(1, self.limit // self.replicas)
            periods, position = divmod(ahead, share)
            position += len(self._spent) - share
            if position >= 0:
                start = max(start, self._spent[position] + self.seconds)
            start += periods * self.seconds
        return start - now

    def may_delay(self, now: float, ahead: int) -> bool:
        """Whether a load after *ahead* others may have to wait for the budget."""
        return self.limit is not None or self.wait(now, ahead) > 0

    def spend(self, now: float) -> None:
        """Count one load; call `wait` first."""
        if self.limit is not None:
            self._spent.append(now)
        self._allowance -= 1

    def pause(self, now: float, seconds: float) -> None:
        """Start no load for *seconds*, at least 1 and at most `MAX_RESET`: upstream said 429."""
        self._paused = max(self._paused, now + min(max(seconds, 1.0), MAX_RESET))

    def observe(self, now: float, *, limit: int, remaining: int, reset: float) -> None:
        """Record what an answer of upstream tells: *remaining* of *limit* for *reset* seconds.

        The upper half may be spent until the reset. Answers can overtake one another, and an
        answer does not count later requests. So the lowest number of a period is kept, and a
        number of an earlier period is ignored.
        """
        allowance, ends = remaining - limit // 2, now + min(max(reset, 0.0), MAX_RESET)
        later = ends - self._allowance_ends
        if (
            now >= self._allowance_ends
            or later >= _SAME_SECONDS
            or (later > -_SAME_SECONDS and allowance < self._allowance)
        ):
            self._allowance, self._allowance_ends = allowance, ends

    def left(self, now: float) -> int | None:
        """Return how many loads may start now; None if nothing bounds them."""
        if self.wait(now) > 0:
            return 0
        bounds = []
        if self.limit is not None:
            recent = sum(1 for spent in self._spent if spent > now - self.seconds)
            bounds.append(self.limit - recent)
        if self._allowance != inf and now < self._allowance_ends:
            bounds.append(int(self._allowance))
        return min(bounds, default=None)
