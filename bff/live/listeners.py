"""The listeners of one process: browsers that get each change of the sessions that they follow.

`Listeners` knows who follows which session: a copy that a load brings is shown to the followers of
its session and to nobody else. One loop asks for the loads, one wheel sends the heartbeats. The
gateway decides for each event whether a listener may see it.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from bff import metrics
from bff.live import events
from bff.live.listener import Listener
from bff.live.lists import Lists
from bff.sessions.copy import Copy, Key
from bff.stream_registry import CHECK_SECONDS, StreamRegistry
from bff.telemetry import Telemetry

HEARTBEAT_SECONDS: Final = 15.0
"""Seconds between two comments: proxies close a connection that is silent for a minute or so."""
_SLOTS: Final = round(HEARTBEAT_SECONDS / CHECK_SECONDS)
"""Slots of the wheel. A new listener gets the next one, so heartbeats are spread evenly."""
SHOWN_AT_ONCE: Final = 250
"""Listeners that get a change before other work has its turn."""
MAX_FOLLOWED: Final = 500
"""Sessions that one listener follows at most."""
FOLLOWED_BY_EACH: Final = 50
"""Sessions that listeners follow on average at most, so that their memory is bounded."""
RECHECK_SECONDS: Final = 0.5
"""Seconds until a session is looked up again while its load is queued or in flight."""


Show = Callable[[Listener, str], None]
"""Decides about one change for one listener, and shows it under the id that it follows."""


@dataclass(eq=False, slots=True)
class Watch:
    """One followed id.

    Attributes:
        key: environment and id.
        followers: the listeners that follow it; the first one is the next to ask for a load.
        due: when it may need a load.
        version: the stamp of what followers were shown last; 0 if there is no such session.
        behind: the followers that may not have been shown it. The next load is shown to them.
        copy: the copy that is being shown.
        old: whether the session cannot be loaded, so that its copy gets older.
        load: the load that the loop waits for.
    """

    key: Key
    due: float
    followers: dict[Listener, None] = field(default_factory=dict)
    version: int | None = None
    behind: list[Listener] = field(default_factory=list)
    copy: Copy | None = None
    old: bool = False
    load: object = None

    def next_follower(self) -> Listener:
        """Take the next follower: they take turns, so each one's share of the budget counts."""
        listener = next(iter(self.followers))
        del self.followers[listener]
        self.followers[listener] = None
        return listener


class Listeners(StreamRegistry[Listener]):
    """Counts listeners, and brings changes to them.

    Args:
        telemetry: counts.
        clock: seconds on the clock that never jumps.
    """

    ends, seconds, kind = metrics.LISTENER_ENDS, metrics.LISTENER_SECONDS, "listener"

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float]) -> None:
        super().__init__(telemetry, clock)
        self.prepared: Callable[[Copy | None], Show]
        """Prepares what is the same for all listeners that get a change now; `Gateway` sets it."""
        self.newest: Callable[[str, str], tuple[Copy | None, bool]]
        """Finds the newest copy of a session, and whether anything is known of it."""
        self.version: Callable[[Copy], int] = lambda copy: events.stamp(copy.etag)
        """Makes the stamp of the document that listeners see of a copy."""
        self.lists = Lists(clock)
        self.followed = 0
        self._watches: dict[Key, Watch] = {}
        self._due: list[tuple[float, int, Watch]] = []
        self._numbers = count()
        self._changes: deque[tuple[Watch, Iterator[Listener]]] = deque()
        self._showing = False
        """Whether changes are being shown, or wait for the next turn."""
        self._left = SHOWN_AT_ONCE
        """Listeners that may get a change in this turn of the event loop."""
        self._turn_ends = False
        """Whether `_begin_turn` will be called."""
        self._wheel: list[dict[Listener, None]] = [{} for _ in range(_SLOTS)]
        self._next_slot = 0
        self._turned = clock() // CHECK_SECONDS

    @property
    def watched(self) -> int:
        """Ids that listeners follow."""
        return len(self._watches)

    def follows(self, copy: Copy) -> bool:
        """Whether a listener follows the session of *copy*."""
        return any(key in self._watches for key in copy.keys)

    def count(self, event: str) -> None:
        """Count an event."""
        self._telemetry.counts[metrics.LISTENER_EVENTS, event] += 1

    # -- listeners come and go

    def add(self, stream: Listener) -> None:
        """Count a listener; its `release` counts its end."""
        super().add(stream)
        self.followed += len(stream.stamps)
        stream.slot = self._next_slot = (self._next_slot + 1) % _SLOTS
        self._wheel[stream.slot][stream] = None
        for name in stream.stamps:
            key = stream.environment, name
            watch = self._watches.get(key)
            if watch is None:
                watch = self._watches[key] = Watch(key, self._clock())
                self._schedule(watch)
            watch.followers[stream] = None
            if stream.stamps[name] != watch.version:
                watch.behind.append(stream)

    def remove(self, stream: Listener, reason: str) -> None:
        """Count the end of a listener."""
        self.followed -= len(stream.stamps)
        del self._wheel[stream.slot][stream]
        for name in stream.stamps:
            watch = self._watches[stream.environment, name]
            del watch.followers[stream]
            if not watch.followers:
                del self._watches[watch.key]
        self.lists.remove(stream)
        super().remove(stream, reason)

    def outdate(self, caller: Hashable, names: Iterable[str], issued: float) -> None:
        """End the lists of a caller who has a newer token that names a new session."""
        for listener in self.lists.outdated(caller, names, issued):
            listener.end("outdated")

    # -- changes

    def changed(self, copy: Copy) -> None:
        """Show a copy that a load brought to all who follow its session."""
        if not self._watches:
            return
        for key in copy.keys:
            if key in self._watches:
                self._watches[key].old = False
        self.update(copy)

    def changed_beside(self, environment: str, ids: Iterable[str]) -> None:
        """Show a session again: a part of its document that no copy holds may have changed."""
        if not self._watches:
            return
        for id_ in ids:  # listeners may follow the other one
            copy, _ = self.newest(environment, id_)
            if copy is not None:
                self.update(copy)

    def update(self, copy: Copy) -> None:
        """Show a copy to all who follow its session, unless it was shown last."""
        watches = [self._watches[key] for key in copy.keys if key in self._watches]
        if watches:
            version = self.version(copy)
            for watch in watches:
                self._spread(watch, version, copy)

    def missing(self, watch: Watch) -> None:
        """Tell all followers that there is no such session."""
        self._spread(watch, 0, None)

    def _spread(self, watch: Watch, version: int, copy: Copy | None) -> None:
        """Show a copy, or its absence, to the followers that were not shown it."""
        followers = watch.behind
        if watch.version != version:
            watch.version, followers = version, list(watch.followers)
        watch.behind = []
        if followers:
            watch.copy = copy
            self._changes.append((watch, iter(followers)))
            if not self._showing:
                self._show_some()

    def _show_some(self) -> None:
        """Show changes to some listeners; the others follow when other work had its turn."""
        self._showing = True
        while self._changes and self._left:
            watch, followers = self._changes[0]
            show, (_, name) = self.prepared(watch.copy), watch.key
            for listener in followers:
                self._decide(show, listener, name)
                self._left -= 1
                if not self._left:
                    break
            else:
                self._changes.popleft()
                if all(watch is not waiting for waiting, _ in self._changes):
                    watch.copy = None
        self._showing = bool(self._changes)
        if not self._turn_ends:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        """Show as many again: all changes of one turn of the event loop share a bound."""
        self._turn_ends, self._left = False, SHOWN_AT_ONCE
        if self._changes:
            self._show_some()

    def show_newest(self, listener: Listener, name: str) -> None:
        """Show what is in memory of a session, or what the next load brings."""
        copy, in_memory = self.newest(listener.environment, name)
        if in_memory:
            self._decide(self.prepared(copy), listener, name)
        else:
            self._watches[listener.environment, name].behind.append(listener)

    def _decide(self, show: Show, listener: Listener, name: str) -> None:
        if listener.must_wait:
            listener.postpone(name)
            return
        try:
            show(listener, name)
        except Exception as exc:  # noqa: BLE001  one listener must not keep a change from the others
            self._telemetry.exception("listener_failed", exc)
            listener.end("failed")

    # -- the loop

    def due(self, now: float, most: int) -> Iterator[Watch]:
        """Take the ids that may need a load, at most *most*; the caller sets when they do again."""
        while self._due and self._due[0][0] <= now and most:
            _, _, watch = heapq.heappop(self._due)
            if self._watches.get(watch.key) is not watch:
                continue
            most -= 1
            watch.due = now + RECHECK_SECONDS
            try:
                yield watch
            finally:  # a watch that is not scheduled would never be loaded again
                self._schedule(watch)

    def _schedule(self, watch: Watch) -> None:
        heapq.heappush(self._due, (watch.due, next(self._numbers), watch))

    def heartbeats(self, now: float) -> Iterator[None]:
        """Send the heartbeats that are due; yields between parts of the work."""
        turned, self._turned = self._turned, now // CHECK_SECONDS
        for turn in range(max(0, min(_SLOTS, int(self._turned - turned)))):
            slot = int(self._turned - turn) % _SLOTS
            for number, listener in enumerate(list(self._wheel[slot]), start=1):
                if listener in self._open:
                    listener.comment(events.OLD if self._has_old(listener) else events.FRESH)
                if number % SHOWN_AT_ONCE == 0:
                    yield

    def _has_old(self, listener: Listener) -> bool:
        # A session that it does not show may be revoked for it, and causes no byte.
        return any(
            stamp > 0 and self._watches[listener.environment, name].old
            for name, stamp in listener.stamps.items()
        )
