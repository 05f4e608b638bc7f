"""The queue of loads that wait for the upstream budget: fair between callers, and bounded. No I/O.

Callers take turns, so a caller with many loads delays nobody else by more than one load a turn. A
refresh in the background takes a turn as a load does that requests wait for. Awaited loads go
before refreshes, which still get a part of the turns. A caller's loads without a copy come first,
then the one with the oldest copy. Nobody has two turns in a row while others wait, so one caller
takes at most half of the budget.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import accumulate, count
from math import inf
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

MAX_TURNS: Final = 1000
"""Loads that wait, at most. If the queue is full, the caller with the most loads loses one."""
MAX_OF_CALLER: Final = 200
"""Loads of one caller that wait for the budget, at most: two pages of the largest size."""
REFRESH_EVERY: Final = 4
"""One turn in this many is for a refresh in the background, if one waits. This holds for the turns
of one caller, and for those of all callers while a caller with only refreshes waits."""


@dataclass(slots=True, eq=False)
class Turn:
    """One load that waits for its turn, on behalf of every caller that requested it.

    Args:
        key: what it loads.
        loaded: when the copy that it replaces was loaded; minus infinity without a copy.
    """

    key: Hashable
    loaded: float
    number: int = 0
    """Its position in the order of arrival."""
    rank: tuple[float, int] = (-inf, 0)
    """The order within one caller: the least comes first. The queue sets it."""
    awaited: bool = False
    """Whether requests wait for it, or did: it is more than a refresh in the background."""
    urgent: bool = False
    """Whether a request waits for this load alone."""
    denied: bool = False
    """Whether the budget that replicas share denied it in its turn, before it was put back."""
    before: tuple[int, int, int] = (0, 0, 0)
    """For `put_back`: the rank of its caller and the two counts of turns since a refresh, before
    its turn."""
    callers: set[Hashable] = field(default_factory=set)
    first: Hashable = None
    """The caller for whom it probably starts: the next in turn when the last caller joined."""


TurnT = TypeVar("TurnT", bound=Turn)
_Ranked = tuple[tuple[float, int], int, TurnT]
"""An entry of a heap: the rank of a turn, a number that no other entry has, the turn."""
_LATER: Final = 2**62
"""Added to the rank of the caller who had the last turn, so that it comes after all others."""
_SKIPPED: Final = 16
"""Entries that a heap may hold beyond twice the loads; then it is made again."""


@dataclass(slots=True, eq=False)
class _Caller(Generic[TurnT]):
    """The loads of one caller that wait."""

    name: Hashable
    rank: int
    """Its position in the order of turns: the least comes first."""
    passed: int = 0
    """Its turns since its last refresh, while it has refreshes."""
    loads: tuple[dict[Hashable, TurnT], dict[Hashable, TurnT]] = field(
        default_factory=lambda: ({}, {})
    )
    """Its refreshes, and its awaited loads, by key; the index says whether awaited."""
    size: int = 0
    """How many loads it has."""
    awaiting: int = 0
    """Its turns until no awaited load is left."""
    _order: tuple[list[_Ranked[TurnT]], list[_Ranked[TurnT]]] = field(
        default_factory=lambda: ([], [])
    )
    """Heaps of `loads` by rank. Entries of turns that left or have another rank are skipped."""
    _numbers: "count[int]" = field(default_factory=count)

    def add(self, turn: TurnT, *, awaited: bool) -> bool:
        """Add *turn*; whether it is new among the loads of this kind."""
        refreshes, _ = self.loads
        if awaited:
            refreshes.pop(turn.key, None)
        new = self.loads[awaited].get(turn.key) is not turn
        self.loads[awaited][turn.key] = turn
        self._count()
        return new

    def drop(self, turn: TurnT) -> None:
        """Drop *turn*."""
        for loads in self.loads:
            loads.pop(turn.key, None)
        self._count()

    def _count(self) -> None:
        refreshes, awaited = map(len, self.loads)
        self.size = refreshes + awaited
        self.awaiting = awaited and _turns(awaited, refreshes)

    def before(self, turn: TurnT) -> int:
        """Return how many of its own loads come before *turn*, for which requests wait."""
        refreshes, awaited = self.loads
        rank = turn.rank
        return _turns(sum(one.rank < rank for one in awaited.values()), len(refreshes))

    def has(self, *, awaited: bool, new: bool) -> bool:
        """Whether it has a load of this kind; with *new*, one that was not denied."""
        loads = self.loads[awaited]
        return any(not turn.denied for turn in loads.values()) if new else bool(loads)

    def next(self, *, new: bool) -> TurnT:
        """Take its next turn."""
        has_refresh = self.has(awaited=False, new=new)
        awaited = self.has(awaited=True, new=new)
        if has_refresh and self.passed >= REFRESH_EVERY - 1:
            awaited = False
        self.passed = self.passed + 1 if awaited and has_refresh else 0
        loads, order = self.loads[awaited], self._order[awaited]
        if new:
            return min((turn for turn in loads.values() if not turn.denied), key=_rank)
        while True:
            rank, _, turn = order[0]
            if loads.get(turn.key) is turn and turn.rank == rank:
                return turn
            heappop(order)

    def holds(self, turn: TurnT) -> bool:
        """Whether *turn* waits on behalf of this caller."""
        return any(loads.get(turn.key) is turn for loads in self.loads)

    def push(self, turn: TurnT) -> None:
        """Put *turn*, which is in `loads`, into the order of ranks."""
        awaited = turn.key in self.loads[True]
        loads, order = self.loads[awaited], self._order[awaited]
        heappush(order, (turn.rank, next(self._numbers), turn))
        if len(order) > 2 * len(loads) + _SKIPPED:
            order[:] = [(turn.rank, next(self._numbers), turn) for turn in loads.values()]
            heapify(order)

    def last(self) -> TurnT:
        """Return the load that comes last: a refresh if it has one."""
        refreshes, awaited = self.loads
        return max((refreshes or awaited).values(), key=_rank)


def _turns(awaited: int, refreshes: int) -> int:
    """Return the turns in which a caller starts *awaited* loads, with refreshes between."""
    return awaited + min(refreshes, awaited // (REFRESH_EVERY - 1) + 1)


class _Survey:
    """The callers of a queue in the order of their turns, surveyed once for many questions.

    Args:
        callers: all of them.
        order: returns the place of a caller in the order.
    """

    def __init__(
        self, callers: "Iterable[_Caller[Any]]", order: "Callable[[_Caller[Any]], int]"
    ) -> None:
        in_order = sorted(callers, key=order)
        self._positions = {one.name: position for position, one in enumerate(in_order)}
        self._awaiting = [one.awaiting for one in in_order]
        self._sorted = [0, *sorted(self._awaiting)]
        self._sums = [0, *accumulate(self._sorted)]
        self._refreshes = sum(len(one.loads[False]) for one in in_order)

    def ahead(self, mine: "_Caller[Any]", before: int) -> int:
        """Return how many loads start before one of *mine*, which comes after *before* others."""
        few = bisect_right(self._sorted, before)  # the callers with *before* turns or fewer
        turns = self._sums[few] + before * (len(self._sorted) - few)  # with those of *mine*
        turns += sum(map(before.__lt__, self._awaiting[: self._positions[mine.name]]))
        longest = self._sorted[-2 if self._sorted[-1] == mine.awaiting else -1]
        # Refreshes of other callers come between, and before each turn for which only *mine* waits.
        due = turns // (REFRESH_EVERY - 1) + 1 + max(0, before + 1 - longest)
        return turns + min(due, self._refreshes - len(mine.loads[False]))


class FairQueue(Generic[TurnT]):
    """The loads of one environment that wait for their turn."""

    def __init__(self, max_turns: int = MAX_TURNS) -> None:
        self._max_turns = max_turns
        self._turns: dict[Hashable, TurnT] = {}
        self._callers: dict[Hashable, _Caller[TurnT]] = {}
        self._numbers = count(1)
        self._ranks = count(1)
        self._passed = 0
        """Turns of callers with awaited loads since the last turn of one with only refreshes."""
        self._last: Hashable = None
        """The caller who had the last turn."""
        self._denied = 0
        """Turns that were denied: without another one, there is nothing new to look for."""
        self._survey: _Survey | None = None
        """The survey of the queue as it is; None after a change."""

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[TurnT]:
        return iter(self._turns.values())

    def __contains__(self, turn: TurnT) -> bool:
        return self._turns.get(turn.key) is turn

    def add(
        self, turn: TurnT, caller: Hashable, *, awaited: bool, most: int = MAX_OF_CALLER
    ) -> TurnT | None:
        """Queue *turn* on behalf of *caller*, who may be one of several.

        Args:
            turn: what to queue.
            caller: who requests it.
            awaited: whether requests wait for it; else it is a refresh in the background.
            most: how many turns of this caller may wait.

        Returns:
            The turn that a full queue gives up, which may be *turn* itself; None if there is room.
        """
        mine, new, loser = self._callers.get(caller), turn not in self, None
        if mine and caller not in turn.callers and mine.size >= most:
            if not (awaited and mine.loads[False]):
                return turn if new else None
            loser = self._detach(mine, mine.last())
        if new and loser is None and len(self._turns) >= self._max_turns:
            longest = max(self._callers.values(), key=_size)
            if longest.size <= (mine.size if mine else 0) + 1:
                return turn
            loser = self._detach(longest, longest.last())
        turn.number = turn.number or next(self._numbers)
        self._insert(turn, caller, awaited=awaited)
        return loser

    def pass_by(self, turn: TurnT, caller: Hashable) -> None:
        """Give *caller* the turn at once, because the queue is empty: as `add` and then `pop`."""
        turn.number, turn.awaited = next(self._numbers), True
        turn.callers.add(caller)
        turn.before = next(self._ranks), 0, self._passed
        self._passed, self._last = 0, caller

    def put_back(self, turn: TurnT, caller: Hashable) -> None:
        """Queue *turn* again, and give *caller* back the turn that it could not use."""
        for one in (*turn.callers, caller):
            self._insert(turn, one, awaited=turn.awaited)
        mine, (rank, mine.passed, self._passed) = self._callers[caller], turn.before
        mine.rank = min(mine.rank, rank)
        if self._last == caller:
            self._last = None

    def pop(
        self, may_start: Callable[[Hashable], bool] = lambda _: True, *, new: bool = False
    ) -> tuple[Hashable, TurnT] | None:
        """Take the next turn, and the caller whose turn it is.

        Args:
            may_start: whether a load of this caller may start now.
            new: take only a turn that was not denied.
        """
        refreshing, waiting = self._next(may_start, new=new)
        mine = waiting or refreshing
        if mine is None:
            return None
        rank, own, of_all = mine.rank, mine.passed, self._passed
        if waiting and refreshing:
            due = of_all >= REFRESH_EVERY - 1 or waiting.name == self._last
            if due and self._order(refreshing) < self._order(waiting):
                mine = refreshing
        self._passed = of_all + 1 if refreshing and mine is waiting else 0
        turn = mine.next(new=new)
        turn.before = rank, own, of_all
        mine.rank, self._last = next(self._ranks), mine.name
        self._remove(turn)
        return mine.name, turn

    def remove(self, turn: TurnT) -> None:
        """Take *turn* out of the queue, for all its callers."""
        if turn in self:
            self._remove(turn)
        turn.callers.clear()

    def clear(self) -> list[TurnT]:
        """Empty the queue; returns its turns."""
        turns = list(self)
        for turn in turns:
            self.remove(turn)
        return turns

    def ahead(self, turn: TurnT) -> int:
        """Return how many loads start before *turn* if no more come; it may be one too few.

        The queue is surveyed once after a change, however many calls follow.
        """
        if turn not in self:
            return 0
        mine, most = self._callers[turn.first], max(0, len(self) - 1)
        if turn.key not in mine.loads[True]:
            return most
        if self._survey is None:
            self._survey = _Survey(self._callers.values(), self._order)
        return min(self._survey.ahead(mine, mine.before(turn)), most)

    def _precedence(self, one: _Caller[TurnT], turn: TurnT) -> tuple[bool, int, int]:
        """Return what is least for the caller on whose behalf *turn* starts."""
        waits = turn.key in one.loads[True]
        return not waits, one.before(turn) if waits else 0, self._order(one)

    def _next(
        self, may_start: Callable[[Hashable], bool], *, new: bool
    ) -> tuple[_Caller[TurnT] | None, _Caller[TurnT] | None]:
        """Return the next caller with only refreshes, and the next of the other callers."""
        first: list[_Caller[TurnT] | None] = [None, None]
        orders = [inf, inf]
        if new and self._denied == len(self):
            return None, None
        for one in self._callers.values():
            waits = one.has(awaited=True, new=True) if new else one.awaiting > 0
            if new and not waits and not one.has(awaited=False, new=True):
                continue
            order = self._order(one)
            if order < orders[waits] and may_start(one.name):
                first[waits], orders[waits] = one, order
        return first[0], first[1]

    def _order(self, caller: _Caller[TurnT]) -> int:
        return caller.rank if caller.name != self._last else caller.rank + _LATER

    def _insert(self, turn: TurnT, caller: Hashable, *, awaited: bool) -> None:
        mine = self._callers.get(caller)
        if mine is None:
            mine = self._callers[caller] = _Caller(caller, next(self._ranks))
        new = mine.add(turn, awaited=awaited)
        # An urgent load passes the loads that arrived before it, but at most `MAX_TURNS` of them,
        # so the caller's lists do not starve.
        rank = turn.loaded, turn.number - (MAX_TURNS if turn.urgent else 0)
        moves, turn.rank = rank != turn.rank, rank
        turn.awaited |= awaited
        turn.callers.add(caller)
        if turn not in self:
            self._turns[turn.key] = turn
            self._denied += turn.denied
        if new:
            mine.push(turn)
        if moves:
            for name in turn.callers:
                if (other := self._callers.get(name)) and other.holds(turn):
                    other.push(turn)
        first = self._callers.get(turn.first)
        if first is not mine and (
            first is None
            or not first.holds(turn)
            or self._precedence(mine, turn) < self._precedence(first, turn)
        ):
            turn.first = caller
        self._survey = None

    def _remove(self, turn: TurnT) -> None:
        """Take *turn* out of the queue; it keeps its callers, and may be put back."""
        self._forget(turn)
        for caller in turn.callers:
            self._drop(self._callers[caller], turn)

    def _detach(self, mine: _Caller[TurnT], turn: TurnT) -> TurnT | None:
        """Take *turn* from one caller; returns it if no other caller has requested it."""
        self._drop(mine, turn)
        turn.callers.discard(mine.name)
        if turn.callers:
            if turn.first == mine.name:
                turn.first = next(iter(turn.callers))
            return None
        self._forget(turn)
        return turn

    def _forget(self, turn: TurnT) -> None:
        del self._turns[turn.key]
        self._denied -= turn.denied

    def _drop(self, mine: _Caller[TurnT], turn: TurnT) -> None:
        mine.drop(turn)
        if not mine.size:
            del self._callers[mine.name]
        self._survey = None


_rank: Final = attrgetter("rank")
_size: Final = attrgetter("size")
