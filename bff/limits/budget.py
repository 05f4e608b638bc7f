"""What may be spent of an environment's bucket upstream. Decides without I/O."""

from collections import deque
from math import inf

from bff.limits.rate import MAX_RESET

_SAME_SECONDS = 1.0
"""Upstream's periods that end as close together as this are one."""


class Budget:
    """What the gateway may spend of one environment's bucket upstream.

    At most *limit* loads in any *seconds*; of the bucket that upstream reports, which is shared
    with the customer's own backend, never the lower half; nothing while upstream says 429.

    Args:
        limit: None for no limit of our own; upstream's word counts all the same.
    """

    EPOCH = 30.0
    """Seconds over which distinct sessions are counted as hot: twice a usual poll interval."""

    def __init__(self, limit: int | None, seconds: float = 1.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self.replicas = 1
        """Among how many the limit is divided; not 1 while replicas cannot count together."""
        self._spent: deque[float] = deque(maxlen=limit)
        self._allowance = inf
        self._allowance_ends = -inf
        self._paused = -inf
        self._epoch = 0
        self._hot = 0
        self._hot_before = 0
        self.stretched = 0.0
        """Seconds a copy must count as fresh for so that all hot sessions fit the budget."""

    def wait(self, now: float) -> float:
        """Seconds until one more load may be spent; 0 if it may now."""
        if now < self._paused:
            return self._paused - now
        if self._allowance < 1 and now < self._allowance_ends:
            return self._allowance_ends - now
        if self.limit is not None:
            share = max(1, self.limit // self.replicas)
            if len(self._spent) >= share:
                return max(0.0, self._spent[-share] + self.seconds - now)
        return 0.0

    def spend(self, now: float) -> None:
        """Count one load; ask `wait` before."""
        if self.limit is not None:
            self._spent.append(now)
        self._allowance -= 1

    def pause(self, now: float, seconds: float) -> None:
        """Spend nothing for *seconds* (bounded to between 1 and `MAX_RESET`): upstream said 429."""
        self._paused = max(self._paused, now + min(max(seconds, 1.0), MAX_RESET))

    def observe(self, now: float, *, limit: int, remaining: int, reset: float) -> None:
        """Learn from an answer what is left upstream: *remaining* of *limit*, for *reset* seconds.

        What is above the lower half may be spent until then. Answers overtake one another, and say
        nothing of what was asked after them: of one period the lowest word counts, and none of a
        former one.
        """
        allowance, ends = remaining - limit // 2, now + min(max(reset, 0.0), MAX_RESET)
        later = ends - self._allowance_ends
        if (
            now >= self._allowance_ends
            or later >= _SAME_SECONDS
            or (later > -_SAME_SECONDS and allowance < self._allowance)
        ):
            self._allowance, self._allowance_ends = allowance, ends

    def count_hot(self, epoch: int, now: float) -> int:
        """Count a session as hot, unless it has been in *epoch* (its last); returns the current."""
        current = int(now / self.EPOCH)
        if current != self._epoch:
            self._hot_before = self._hot if current == self._epoch + 1 else 0
            self._hot = 0
            self._epoch = current
        if epoch != current:
            self._hot += 1
            if self.limit is not None:
                self.stretched = max(self._hot, self._hot_before) * self.seconds / self.limit
        return current

    def left(self, now: float) -> int | None:
        """How many loads may be spent at once now; None if nothing bounds them."""
        if self.wait(now) > 0:
            return 0
        bounds = []
        if self.limit is not None:
            recent = sum(1 for spent in self._spent if spent > now - self.seconds)
            bounds.append(self.limit - recent)
        if self._allowance != inf and now < self._allowance_ends:
            bounds.append(int(self._allowance))
        return min(bounds, default=None)
