"""Starts the loads of one environment in their turn, as the budget allows.

Every load but a readiness check waits in this queue, if only for a moment: it starts at once while
the budget has room. `limits.queue` decides about the order. Without a store the queue spends from
the budget before it starts a load. With one the load itself spends, because another replica may
have the copy; if the store denies it, the load comes back into the queue.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Final

from bff.clock import Clock
from bff.errors import Refusal
from bff.limits.budget import Budget
from bff.limits.queue import FairQueue, Turn
from bff.replicas.alone import AnySharing
from bff.sessions.copy import Copy

TURN_SECONDS: Final = 1.25
"""Seconds that a request without any copy waits for the turn of its load: longer than until the
next turn of a budget per second."""
MAX_IN_FLIGHT: Final = 100
"""Loads in flight of one environment: there is one connection upstream for each."""
_MAX_OF_CALLER: Final = 80
"""Loads in flight that the turns of one caller started. The rest is for other callers, if upstream
is slow."""
MAX_UNSPENT: Final = 16
"""Loads that call the store at the same time; more would make the store exceed its timeout."""

Outcome = Copy | Refusal


class QueuedLoad(Turn):
    """A load of a session, which any number of requests may wait for.

    Args:
        id_: the id by which the session was requested.
        copy: the copy that the load replaces.
        stretch: seconds for which a copy of another replica counts as fresh: the least of those
            of the callers who requested it.
        queue: the queue that it waits in.
    """

    __slots__ = (
        "copy", "id", "kept", "outcome", "queue", "since", "spent", "stretch", "task", "waiting",
    )  # fmt: skip

    def __init__(
        self, id_: str, copy: Copy | None, stretch: float, now: float, queue: "LoadQueue"
    ) -> None:
        super().__init__(id_, -inf if copy is None else copy.loaded)
        self.id = id_
        self.copy = copy
        self.stretch = stretch
        self.since = now
        self.queue = queue
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Outcome] | None = None
        """The load in flight."""
        self.spent = False
        """Whether the budget has allowed it."""
        self.waiting = 0
        """Requests that wait for it."""
        self.kept = False
        """Whether it starts even if no request waits: a copy needs a refresh, or a refused request
        may come again."""

    @property
    def queued(self) -> bool:
        """Whether it still waits for its turn."""
        return self.task is None and not self.outcome.done()

    def leave(self, *, again: bool) -> None:
        """Count one waiting request less; *again* says that the browser may send it again."""
        self.queue.leave(self, again=again)

    def expected(self, now: float) -> float:
        """Seconds until its turn, if no more loads come."""
        return self.queue.expected(self, now)


class LoadQueue:
    """The loads of one environment.

    Args:
        environment: its name.
        budget: returns the environment's budget by the current settings.
        load: starts a load.
        recent: returns what the cache has at the load's turn, if that makes the load needless.
        in_flight: returns the load in flight that a request for an id may join.
    """

    def __init__(
        self,
        environment: str,
        *,
        clock: Clock,
        sharing: AnySharing,
        budget: Callable[[], Budget],
        load: Callable[[QueuedLoad], "asyncio.Task[Outcome]"],
        recent: Callable[[QueuedLoad, float], Outcome | None],
        in_flight: Callable[[str], "asyncio.Task[Outcome] | None"],
    ) -> None:
        self._environment = environment
        self._clock = clock
        self._sharing = sharing
        self._budget = budget
        self._load = load
        self._recent = recent
        self._in_flight = in_flight
        self._queue: FairQueue[QueuedLoad] = FairQueue()
        self._loads: dict[str, QueuedLoad] = {}
        """Queued or in flight, by id."""
        self._running: Counter[Hashable] = Counter()
        """Loads in flight, by the caller whose turn started them."""
        self._total = 0
        self._unspent = 0
        self._holds = 0
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        """When the timer fires: uvloop gives a handle without a time if that is very soon."""
        self._stopped = False

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether any load is queued or in flight."""
        return bool(self._loads)

    def get(self, id_: str) -> QueuedLoad | None:
        """Get the load that a request may join."""
        load = self._loads.get(id_)
        if load is None or load.outcome.done():
            return None
        if load.task is not None and self._in_flight(id_) is not load.task:
            return None  # the session was purged since the load started
        return load

    def request(
        self, id_: str, copy: Copy | None, caller: Hashable, now: float, *, stretch: float
    ) -> QueuedLoad | None:
        """Join or queue a load that *caller* waits for; None if the queue is full."""
        load = self.get(id_)
        if load is None:
            load = QueuedLoad(id_, copy, stretch, now, self)
            if not self._add(load, caller, awaited=True):
                self._start_turns()  # despite a hold, because a large page can fill the queue
                if not self._add(load, caller, awaited=True):
                    return None
        else:
            load.stretch = min(load.stretch, stretch)
            if load.queued:
                self._add(load, caller, awaited=True)
        load.waiting += 1
        self.start_loads()
        return load

    def refresh(
        self, id_: str, copy: Copy, caller: Hashable, now: float, *, stretch: float
    ) -> None:
        """Queue a load in the background, unless one exists; no request waits for it."""
        load = self.get(id_)
        if load is None:
            load = QueuedLoad(id_, copy, stretch, now, self)
        load.stretch = min(load.stretch, stretch)
        if load.task is not None or caller in load.callers:
            return
        load.kept = True
        self._add(load, caller, awaited=False)
        self.start_loads()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Start no load inside the `with` block; after it the most urgent load starts first."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self.start_loads()

    def leave(self, load: QueuedLoad, *, again: bool) -> None:
        """See `QueuedLoad.leave`. A queued load that no request needs is removed."""
        load.waiting -= 1
        load.kept |= again
        if load.queued and not load.waiting and not load.kept:
            self._queue.remove(load)
            self._forget(load)

    def expected(self, load: QueuedLoad, now: float) -> float:
        """See `QueuedLoad.expected`."""
        if not load.queued or self._holds:
            return 0.0
        return self._wait(now, self._queue.ahead(load))

    def paid(self, load: QueuedLoad) -> None:
        """Record that the store has allowed the call of *load*."""
        load.spent = True
        self._unspent -= 1
        self.start_loads()

    def stop(self) -> None:
        """Start no more loads, and refuse those that wait."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for load in self._queue.clear():
            self._refuse(load, None)

    def start_loads(self) -> None:
        """Start the loads whose turn it is."""
        if not self._holds:
            self._start_turns()

    def _start_turns(self) -> None:
        if self._stopped or not len(self._queue):
            return
        now, up = self._clock()[0], self._sharing.up
        wait = 0.0
        while len(self._queue) and self._total < MAX_IN_FLIGHT:
            wait = self._wait(now)
            if (up and self._unspent >= MAX_UNSPENT) or (not up and wait > 0):
                break
            # While the store denies calls, a load that it has not denied may start: another
            # replica may have a copy.
            turn = self._queue.pop(self._may_start, new=wait > 0)
            if turn is None:
                break
            self._start(*turn, now, up=up)
        if wait > 0 and len(self._queue):
            self._wake_after(wait)

    def _wait(self, now: float, ahead: int = 0) -> float:
        return self._sharing.limits.wait(self._environment, self._budget(), now, ahead)

    def _may_start(self, caller: Hashable) -> bool:
        return self._running[caller] < _MAX_OF_CALLER

    def _start(self, caller: Hashable, load: QueuedLoad, now: float, *, up: bool) -> None:
        if now > load.since and (outcome := self._recent(load, now)) is not None:
            self._end_with(load, outcome)
            return
        load.spent = not up
        if up:
            self._unspent += 1
        else:
            self._budget().spend(now)
        self._running[caller] += 1
        self._total += 1
        load.task = self._load(load)
        load.task.add_done_callback(partial(self._ended, load, caller))

    def _ended(self, load: QueuedLoad, caller: Hashable, task: "asyncio.Task[Outcome]") -> None:
        self._total -= 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        if not load.spent:
            self._unspent -= 1
        ended = not task.cancelled() and task.exception() is None
        outcome = task.result() if ended else Refusal("internal")
        if not (self._is_denied(load, outcome) and self._again(load, caller)):
            self._end_with(load, outcome)
        self.start_loads()

    def _is_denied(self, load: QueuedLoad, outcome: Outcome) -> bool:
        """Whether the store denied the call for a short time, and the load is still needed."""
        return (
            not load.spent
            and isinstance(outcome, Refusal)
            and outcome.code == "over_budget"
            and (outcome.retry_after or 0.0) <= TURN_SECONDS
            and (load.waiting > 0 or load.kept)
            and self._loads.get(load.id) is load
        )

    def _again(self, load: QueuedLoad, caller: Hashable) -> bool:
        load.task, load.denied = None, True
        return self._add(load, caller, awaited=load.waiting > 0, first=True)

    def _add(
        self, load: QueuedLoad, caller: Hashable, *, awaited: bool, first: bool = False
    ) -> bool:
        """Queue *load* if there is room. A full queue may refuse another load in its place.

        Returns:
            False if the queue refused *load*.
        """
        loser = self._queue.add(load, caller, awaited=awaited, first=first)
        if loser is load:
            return False
        if load in self._queue:
            self._loads[load.id] = load
        if loser is not None:
            self._refuse(loser, self._budget().wait(self._clock()[0], len(self._queue)))
        return True

    def _refuse(self, load: QueuedLoad, seconds: float | None) -> None:
        self._end_with(load, Refusal("over_budget", retry_after=seconds))

    def _end_with(self, load: QueuedLoad, outcome: Outcome) -> None:
        self._forget(load)
        if not load.outcome.done():
            load.outcome.set_result(outcome)

    def _forget(self, load: QueuedLoad) -> None:
        if self._loads.get(load.id) is load:
            del self._loads[load.id]

    def _wake_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._wake)

    def _wake(self) -> None:
        self._timer = None  # a timer may fire a little early; `start_loads` then sets a new one
        self.start_loads()
