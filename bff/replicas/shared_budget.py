"""The budgets that replicas share, and what this replica remembers of them. No I/O."""

from math import inf
from typing import Final, NamedTuple

_MEMORY_SECONDS: Final = 1.0
"""Seconds for which this replica remembers that the budget is spent, instead of asking the store
for each load. It is short, because upstream may report a new period of its bucket to another
replica."""


class SharedBudget(NamedTuple):
    """The loads that all replicas may start for an environment: *limit* in any *seconds*.

    Attributes:
        limit: None for no limit of the gateway; 0 for loads that spend nothing.
        name: which of the environment's budgets it is; see `Budget`.
    """

    origin: str
    limit: int | None
    seconds: float
    name: str = "spent"


class Denials:
    """The budgets that the store lately said are spent: the only memory of that in a replica."""

    def __init__(self) -> None:
        self._waits: dict[SharedBudget, tuple[float, float]] = {}
        """Until when this replica remembers it, and when the next load may start."""

    @property
    def none(self) -> bool:
        """Whether it remembers none, as usual: then no budget has to be hashed."""
        return not self._waits

    def wait(self, budget: SharedBudget, now: float) -> float:
        """Return the seconds until the store allows the next load; 0 if only the store can tell."""
        remembered, next_ = self._waits.get(budget, (-inf, -inf))
        return next_ - now if now < min(remembered, next_) else 0.0

    def ask(self, budget: SharedBudget, now: float) -> float:
        """Return the wait as `wait` does; if it is 0, the caller asks the store for all callers.

        Many loads may wait for one budget. When the memory ends, one of them asks at a time.
        """
        if self.none:
            return 0.0
        wait = self.wait(budget, now)
        if not wait and budget in self._waits:
            self._waits[budget] = now + _MEMORY_SECONDS, self._waits[budget][1]
        return wait

    def forget(self, budget: SharedBudget) -> None:
        """Forget that the budget was spent: the store allowed a load."""
        if not self.none:
            self._waits.pop(budget, None)

    def record(self, budget: SharedBudget, now: float, seconds: float) -> None:
        """Remember that the store allows no load for *seconds*."""
        self._waits[budget] = now + _MEMORY_SECONDS, now + seconds
