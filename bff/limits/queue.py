"""The queue of loads that wait for the upstream budget: fair between callers, and bounded. No I/O.

Callers take turns, so a caller with many loads delays nobody else by more than one load a turn. A
caller's loads without a copy come first, then the one with the oldest copy. Loads that
requests wait for go before refreshes in the background, which still get a part of the turns.
Nobody has two turns in a row while others wait, so one caller takes at most half of the budget.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import count
from math import inf
from typing import Final, Generic, TypeVar

MAX_TURNS: Final = 1000
"""Loads that wait, at most. If the queue is full, the caller with the most loads loses one."""
MAX_OF_CALLER: Final = 200
"""Loads of one caller that wait, at most: two pages of the largest size."""
REFRESH_EVERY: Final = 4
"""In this many turns at least one is for a refresh in the background, if one waits."""


class Turn:
    """One load that waits for its turn, on behalf of every caller that requested it.

    Args:
        key: what it loads.
        loaded: when the copy that it replaces was loaded; minus infinity without a copy.
    """

    __slots__ = ("callers", "denied", "key", "loaded", "number")

    def __init__(self, key: Hashable, loaded: float) -> None:
        self.key = key
        self.loaded = loaded
        self.number = 0
        """Its position in the order of arrival."""
        self.denied = False
        """Whether it had a turn, in which the budget that replicas share denied it."""
        self.callers: set[Hashable] = set()

    @property
    def rank(self) -> tuple[float, int]:
        """The order within one caller: the least comes first."""
        return self.loaded, self.number


TurnT = TypeVar("TurnT", bound=Turn)


class _Ring(Generic[TurnT]):
    """The turns of each caller. The first caller is the next one, and then becomes the last."""

    def __init__(self) -> None:
        self.callers: OrderedDict[Hashable, dict[Hashable, TurnT]] = OrderedDict()

    def add(self, caller: Hashable, turn: TurnT, *, first: bool) -> None:
        self.callers.setdefault(caller, {})[turn.key] = turn
        if first:
            self.callers.move_to_end(caller, last=False)

    def remove(self, caller: Hashable, turn: TurnT) -> None:
        turns = self.callers.get(caller)
        if turns is not None and turns.pop(turn.key, None) is not None and not turns:
            del self.callers[caller]

    def size(self, caller: Hashable) -> int:
        return len(self.callers.get(caller, ()))

    def last(self, caller: Hashable) -> TurnT | None:
        turns = self.callers.get(caller)
        return max(turns.values(), key=_rank) if turns else None

    def next(
        self, may_start: Callable[[Hashable], bool], *, new: bool
    ) -> tuple[Hashable, TurnT] | None:
        for caller, turns in self.callers.items():
            if not may_start(caller):
                continue
            some = [turn for turn in turns.values() if not turn.denied] if new else turns.values()
            if some:
                self.callers.move_to_end(caller)
                return caller, min(some, key=_rank)
        return None


class FairQueue(Generic[TurnT]):
    """The loads of one environment that wait for their turn."""

    def __init__(self, max_turns: int = MAX_TURNS, max_of_caller: int = MAX_OF_CALLER) -> None:
        self._max_turns = max_turns
        self._max_of_caller = max_of_caller
        self._turns: dict[Hashable, TurnT] = {}
        self._awaited: _Ring[TurnT] = _Ring()
        self._refreshes: _Ring[TurnT] = _Ring()
        self._numbers = count()
        self._passed = 0
        """Turns for awaited loads since the last refresh, while refreshes wait."""
        self._last: Hashable = None
        """The caller who had the last turn."""

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, turn: TurnT) -> bool:
        return self._turns.get(turn.key) is turn

    def add(
        self, turn: TurnT, caller: Hashable, *, awaited: bool, first: bool = False
    ) -> TurnT | None:
        """Queue *turn* on behalf of *caller*, who may be one of several.

        It is *awaited* by requests, or else a refresh in the background. With *first* the caller is
        next, because it could not use its last turn. Returns the turn that a full queue gives up,
        which may be *turn* itself; None if there is room.
        """
        ring, new = self._awaited if awaited else self._refreshes, turn not in self
        loser: TurnT | None = None
        if caller not in turn.callers and self._size(caller) >= self._max_of_caller:
            refresh = self._refreshes.last(caller) if awaited else None
            if refresh is None:
                return turn if new else None
            loser = self._detach(caller, refresh)
        if new and loser is None and len(self._turns) >= self._max_turns:
            loser = self._longest(caller)
            if loser is None:
                return turn
        if new:
            turn.number = turn.number or next(self._numbers) + 1
            self._turns[turn.key] = turn
        turn.callers.add(caller)
        if awaited:
            self._refreshes.remove(caller, turn)
        if first and self._last == caller:
            self._last = None
        ring.add(caller, turn, first=first)
        return loser

    def pop(
        self, may_start: Callable[[Hashable], bool] = lambda _: True, *, new: bool = False
    ) -> tuple[Hashable, TurnT] | None:
        """Take the next turn, and the caller whose turn it is.

        Args:
            may_start: whether a load of this caller may start now.
            new: take only a turn that was not denied.
        """
        turn = self._pop(lambda caller: caller != self._last and may_start(caller), new=new)
        if turn is None:
            turn = self._pop(may_start, new=new)
        if turn is not None:
            self._last = turn[0]
        return turn

    def _pop(
        self, may_start: Callable[[Hashable], bool], *, new: bool
    ) -> tuple[Hashable, TurnT] | None:
        rings = [self._awaited, self._refreshes]
        if self._passed >= REFRESH_EVERY - 1:
            rings.reverse()
        for ring in rings:
            if (first := ring.next(may_start, new=new)) is not None:
                waits = ring is self._awaited and self._refreshes.callers
                self._passed = self._passed + 1 if waits else 0
                self.remove(first[1])
                return first
        return None

    def remove(self, turn: TurnT) -> None:
        """Take *turn* out of the queue, for all its callers."""
        if self._turns.pop(turn.key, None) is not None:
            for caller in turn.callers:
                self._awaited.remove(caller, turn)
                self._refreshes.remove(caller, turn)
        turn.callers.clear()

    def clear(self) -> list[TurnT]:
        """Empty the queue; returns its turns."""
        turns = list(self._turns.values())
        for turn in turns:
            self.remove(turn)
        return turns

    def ahead(self, turn: TurnT) -> int:
        """Return how many loads start before *turn*, or one less, if no more of them come."""
        best, own_before, refreshes = inf, 0, 0
        for ring in (self._awaited, self._refreshes):
            for caller in turn.callers:
                own = ring.callers.get(caller, {})
                if turn.key in own:
                    before = sum(one.rank < turn.rank for one in own.values())
                    others = sum(
                        min(len(turns), before + 1) for turns in ring.callers.values()
                    ) - min(len(own), before + 1)
                    if before + others < best:
                        best, own_before = before + others, before
                        refreshes = self._refreshes.size(caller)
            if best < inf:
                break
        if best == inf:
            return 0
        if self._refreshes.callers:
            best += min(
                refreshes + 1, best // 2 + 2
            )  # a refresh of its caller is that caller's turn
            best += max(best // (REFRESH_EVERY - 1), own_before) + 1
        return min(int(best), len(self._turns) - 1)

    def _size(self, caller: Hashable) -> int:
        return self._awaited.size(caller) + self._refreshes.size(caller)

    def _detach(self, caller: Hashable, turn: TurnT) -> TurnT | None:
        """Take *turn* from *caller*; returns it if no other caller has requested it."""
        self._awaited.remove(caller, turn)
        self._refreshes.remove(caller, turn)
        turn.callers.discard(caller)
        if turn.callers:
            return None
        del self._turns[turn.key]
        return turn

    def _longest(self, caller: Hashable) -> TurnT | None:
        """Take the last turn of the caller who has the most; None if that is *caller*."""
        longest = max((*self._awaited.callers, *self._refreshes.callers), key=self._size)
        if self._size(longest) <= self._size(caller) + 1:
            return None
        turn = self._refreshes.last(longest) or self._awaited.last(longest)
        return self._detach(longest, turn) if turn is not None else None


def _rank(turn: Turn) -> tuple[float, int]:
    return turn.rank
