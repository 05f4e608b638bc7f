"""Starts the loads of one environment in their turn, as the budget allows.

Every load passes through this queue, except readiness checks. It starts at once while the budget
has room. `limits.queue` decides about the order. Without a store the queue spends from the budget
before it starts a load. With a store the load itself spends, because another replica may have the
copy. If the store denies the load, it comes back into the queue.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from typing import Final

from bff.clock import Clock
from bff.errors import Refusal
from bff.limits.budget import Budget
from bff.limits.hot_sessions import EPOCH
from bff.limits.queue import MAX_OF_CALLER, MAX_TURNS, FairQueue, Turn
from bff.limits.rate import MAX_RESET
from bff.replicas.alone import AnySharing
from bff.sessions.copy import Copy

TURN_SECONDS: Final = 1.25
"""Seconds that a request without any copy waits until the budget allows its load. The next turn of
a budget per second comes sooner."""
UNBOUNDED_SECONDS: Final = 10.0
"""Seconds that it waits if the budget delays no load: only a slow upstream makes it wait."""
MAX_IN_FLIGHT: Final = 100
"""Loads in flight of one environment: there is one connection upstream for each."""
_MAX_OF_CALLER: Final = 80
"""Loads in flight that the turns of one caller started. The rest is for other callers, if upstream
is slow."""
MAX_UNSPENT: Final = 32
"""Loads that call the store at the same time; more would make the store exceed its timeout."""
_SWEEP_SECONDS: Final = 1.0
"""Seconds between two searches for loads that nobody needs any more."""

Outcome = Copy | Refusal


class QueuedLoad(Turn):
    """A load of a session, which any number of requests may wait for.

    Args:
        id_: the id by which the session was requested.
        copy: the copy that the load replaces.
        now: the time, in seconds.
        stretch: seconds for which a copy of another replica counts as fresh: the least of those
            of the callers who requested it.
        queue: the queue that it waits in.
    """

    __slots__ = (
        "copy", "id", "needed_until", "outcome", "queue", "since", "spent", "stretch", "task",
        "waiting",
    )  # fmt: skip

    def __init__(
        self, id_: str, copy: Copy | None, stretch: float, queue: "LoadQueue", now: float
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
        self.needed_until = -inf
        """Until when it is needed even if no request waits: browsers read the copy that it
        refreshes, or a refused request may come again."""

    @property
    def queued(self) -> bool:
        """Whether it still waits for its turn."""
        return self.task is None and not self.outcome.done()

    def leave(self, *, again: bool) -> None:
        """Count one waiting request less; with *again* the browser may send it again."""
        self.waiting -= 1
        if self.outcome.done():
            return
        if again:
            self.keep()
        if self.queued and not self.is_needed():
            self.queue.remove(self)

    def keep(self, seconds: float = 0.0) -> None:
        """Keep it needed: a browser may send its request again after *seconds*."""
        until = self.queue.now() + min(seconds, MAX_RESET) + EPOCH
        self.needed_until = max(self.needed_until, until)

    def is_needed(self) -> bool:
        """Whether a request waits for it, or may come again."""
        return self.waiting > 0 or self.queue.now() < self.needed_until

    def successor(self) -> "QueuedLoad":
        """Make the load that stays in the queue when the requests for this one are refused."""
        load = QueuedLoad(self.id, self.copy, self.stretch, self.queue, self.queue.now())
        load.needed_until, load.callers = self.needed_until, self.callers
        load.number, load.before = self.number, self.before
        load.awaited, load.urgent = self.awaited, self.urgent
        return load

    def expected(self, now: float) -> float:
        """Seconds until its turn, if no more loads come."""
        return self.queue.expected(self, now)

    def longest_wait(self, now: float) -> float:
        """Seconds that a request without any copy waits for its turn."""
        return TURN_SECONDS if self.queue.may_be_delayed(now) else UNBOUNDED_SECONDS


class _Alarm:
    """One timer, which fires at the earliest of the times for which it was set."""

    __slots__ = ("_due", "_then", "_timer")

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        """When the timer fires. A handle of uvloop has no time if that is very soon."""

    def set(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._fire)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None  # it may fire a little early; `start_loads` then sets a new one
        self._then()


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
        self._running: dict[Hashable, int] = {}
        """Loads in flight, by the caller whose turn started them."""
        self._total = 0
        self._unspent = 0
        self._holds = 0
        self._swept = -inf
        self._alarm = _Alarm(self.start_loads)
        self._stopped = False

    def __len__(self) -> int:
        return len(self._queue)

    def now(self) -> float:
        """Read the clock that never jumps."""
        return self._clock()[0]

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
        self, id_: str, copy: Copy | None, caller: Hashable, *, stretch: float, alone: bool = False
    ) -> QueuedLoad | None:
        """Join or queue a load for *caller* (*alone*: no list waits); None if the queue is full."""
        load = self.get(id_)
        if load is None:
            load = QueuedLoad(id_, copy, stretch, self, self.now())
            load.urgent = alone
            if not self._start_at_once(load, caller) and not self._add(load, caller, awaited=True):
                self._start_turns()  # despite a hold, because a large page can fill the queue
                if not self._add(load, caller, awaited=True):
                    return None
        else:
            load.stretch = min(load.stretch, stretch)
            load.urgent |= alone
            if load.queued:
                self._add(load, caller, awaited=True)
        load.waiting += 1
        self.start_loads()
        return load

    def refresh(self, id_: str, copy: Copy, caller: Hashable, *, stretch: float) -> None:
        """Queue a load in the background, unless one exists; no request waits for it."""
        load = self.get(id_)
        if load is None:
            load = QueuedLoad(id_, copy, stretch, self, self.now())
        load.stretch = min(load.stretch, stretch)
        load.keep()
        if load.task is None and caller not in load.callers:
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

    def may_be_delayed(self, now: float) -> bool:
        """Whether the budget may delay a load that is queued now."""
        return self._budget().may_delay(now, len(self._queue))

    def expected(self, load: QueuedLoad, now: float) -> float:
        """See `QueuedLoad.expected`."""
        waits = load.queued and not self._holds and self._wait(now, len(self._queue)) > 0
        return self._wait(now, self._queue.ahead(load)) if waits else 0.0

    def remove(self, load: QueuedLoad) -> None:
        """Take out a queued load that no request waits for."""
        self._queue.remove(load)
        self._refuse(load, None)

    def paid(self, load: QueuedLoad) -> None:
        """Record that the store has allowed the call of *load*."""
        load.spent = True
        self._unspent -= 1
        self.start_loads()

    def stop(self) -> None:
        """Start no more loads, and refuse those that wait."""
        self._stopped = True
        self._alarm.cancel()
        for load in self._queue.clear():
            self._refuse(load, None)

    def start_loads(self) -> None:
        """Start the loads whose turn it is."""
        if not self._holds:
            self._start_turns()

    def _start_at_once(self, load: QueuedLoad, caller: Hashable) -> bool:
        """Start *load* without a turn in the queue: nothing waits, and there is room."""
        now, up = load.since, self._sharing.up
        busy = self._total >= MAX_IN_FLIGHT or (up and self._unspent >= MAX_UNSPENT)
        if busy or self._queue or self._holds or self._stopped:
            return False
        if not self._may_start(caller) or self._wait(now) > 0:
            return False
        self._queue.pass_by(load, caller)
        self._loads[load.id] = load
        self._start(caller, load, now, up=up)
        return True

    def _start_turns(self) -> None:
        if self._stopped or not self._queue:
            return
        now, up = self.now(), self._sharing.up
        self._sweep(now)
        wait = 0.0
        while self._queue and self._total < MAX_IN_FLIGHT:
            wait = self._wait(now)
            if (up and self._unspent >= MAX_UNSPENT) or (not up and wait > 0):
                break
            # While the store denies calls, a load that it has not denied starts nevertheless,
            # because another replica may have a copy.
            turn = self._queue.pop(self._may_start, new=wait > 0)
            if turn is None:
                break
            self._start(*turn, now, up=up)
        if wait > 0 and self._queue:
            self._alarm.set(wait)

    def _sweep(self, now: float) -> None:
        """Remove the loads that nobody needs any more."""
        if now >= self._swept + _SWEEP_SECONDS:
            self._swept = now
            for load in [load for load in self._queue if not load.is_needed()]:
                self.remove(load)

    def _wait(self, now: float, ahead: int = 0) -> float:
        return self._sharing.limits.wait(self._environment, self._budget(), now, ahead)

    def _may_start(self, caller: Hashable) -> bool:
        return self._running.get(caller, 0) < _MAX_OF_CALLER

    def _start(self, caller: Hashable, load: QueuedLoad, now: float, *, up: bool) -> None:
        if now > load.since and (outcome := self._recent(load, now)) is not None:
            self._end_with(load, outcome)
            return
        load.spent = not up
        if up:
            self._unspent += 1
        else:
            self._budget().spend(now)
        self._running[caller] = self._running.get(caller, 0) + 1
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
        failed = task.cancelled() or task.exception() is not None
        outcome = Refusal("internal") if failed else task.result()
        if not self._put_back(load, caller, outcome):
            self._end_with(load, outcome)
        self.start_loads()

    def _put_back(self, load: QueuedLoad, caller: Hashable, outcome: Outcome) -> bool:
        """Queue *load* again if the store denied it, and it is still needed.

        If its turn is far, its requests are refused, and a successor stays in the queue.
        """
        if load.spent or not isinstance(outcome, Refusal) or outcome.code != "over_budget":
            return False
        if not load.is_needed() or self._loads.get(load.id) is not load:
            return False
        seconds = outcome.retry_after or 0.0
        queued = load if seconds <= TURN_SECONDS else load.successor()
        queued.task, queued.denied = None, True
        self._queue.put_back(queued, caller)
        if queued is not load:
            seconds = max(seconds, queued.expected(self.now()))
            queued.keep(seconds)
            self._end_with(load, replace(outcome, retry_after=seconds))
        self._loads[load.id] = queued
        return True

    def _add(self, load: QueuedLoad, caller: Hashable, *, awaited: bool) -> bool:
        """Queue *load*; False if a full queue refused it. It may refuse another in its place."""
        most = MAX_OF_CALLER if self.may_be_delayed(self.now()) else MAX_TURNS
        loser = self._queue.add(load, caller, awaited=awaited, most=most)
        if loser is load:
            return False
        if load in self._queue:
            self._loads[load.id] = load
        if loser is not None:
            self._refuse(loser, self._budget().wait(self.now(), len(self._queue)))
        return True

    def _refuse(self, load: QueuedLoad, seconds: float | None) -> None:
        self._end_with(load, Refusal("over_budget", retry_after=seconds))

    def _end_with(self, load: QueuedLoad, outcome: Outcome) -> None:
        if self._loads.get(load.id) is load:
            del self._loads[load.id]
        if not load.outcome.done():
            load.outcome.set_result(outcome)
