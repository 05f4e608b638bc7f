"""One browser that listens: what it shows, and the way of events to it.

A listener has neither a task nor a timer. A browser that reads slowly holds a bounded number of
bytes: meanwhile the listener notes which sessions changed, and shows their newest state when the
browser has read.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from bff.live import events
from bff.response import DETACHED, EventSink
from bff.sessions.copy import Copy


class Registry(Protocol):
    """Where a listener is counted; see `bff.live.listeners`."""

    def count(self, event: str) -> None:
        """Count an event."""

    def remove(self, stream: "Listener", reason: str) -> None:
        """Count the end of a listener."""

    def show_newest(self, listener: "Listener", name: str) -> None:
        """Show what is in memory of a session."""


@dataclass(eq=False, slots=True, kw_only=True)
class Listener:
    """One browser that listens.

    Attributes:
        listeners: where it is counted.
        environment: the environment of its sessions.
        caller: the key under which its caller is counted.
        address: the key of its browser's address.
        grounds: what it was allowed by.
        stamps: the stamp of each id that it follows, in the order of its token: 0 for nothing,
            negative for a refusal.
        began: when it was opened.
        total: the sum of the stamps.
        opening: what it sends first, when its browser's side is attached.
    """

    cut = False
    """Its events come from this process, so nothing cuts them."""
    reserves = False

    listeners: Registry
    environment: str
    caller: Hashable
    address: str
    grounds: Any
    stamps: dict[str, int]
    began: float
    total: int = 0
    opening: bytes = b""
    slot: int = 0
    _sink: EventSink = DETACHED
    _dirty: set[str] | None = None
    """Followed ids whose sessions changed while the browser had to read first."""
    _reason: str | None = None
    _released: bool = False

    # -- what it shows

    def name_of(self, copy: Copy) -> str | None:
        """The id under which it shows a session: of both ids, the first that its token names."""
        id_, other, stamps = copy.id, copy.external_id, self.stamps
        if other is None or other not in stamps:
            return id_ if id_ in stamps else None
        if id_ not in stamps:
            return other
        return next(name for name in stamps if name in (id_, other))

    def set_stamp(self, name: str, stamp: int) -> None:
        """Change what it shows of one session."""
        self.total = events.add(self.total, self.stamps[name], stamp)
        self.stamps[name] = stamp

    def show(self, name: str, stamp: int, document: bytes) -> None:
        """Show a session, unless it is shown already."""
        if self.stamps[name] != stamp:
            self.set_stamp(name, stamp)
            self._sink.send_event(events.session(document, self.total))
            self.listeners.count("session")

    def hide(self, name: str) -> None:
        """Show a session no longer."""
        if self.stamps[name]:
            self.set_stamp(name, 0)
            self._sink.send_event(events.gone(name, self.total))
            self.listeners.count("gone")

    def comment(self, data: bytes) -> None:
        """Send a comment, unless the browser has to read first."""
        if not self._sink.paused:
            self._sink.send_event(data)

    @property
    def must_wait(self) -> bool:
        """Whether the browser has to read first."""
        return self._sink.paused

    def postpone(self, name: str) -> None:
        """Note that a session changed, for `resume`."""
        if self._dirty is None:
            self._dirty = set()
        self._dirty.add(name)

    def resume(self) -> None:
        """Show what changed while the browser had to read first."""
        dirty, self._dirty = self._dirty, None
        for name in dirty or ():
            if self._sink.paused:
                self.postpone(name)
            elif not self._released:
                self.listeners.show_newest(self, name)

    # -- its life

    def attach(self, sink: EventSink) -> None:
        """Connect the browser's side."""
        self._sink = sink
        opening, self.opening = self.opening, b""
        if self._reason is not None:
            self._finish(self._reason)
            return
        sink.send_event(opening)
        if not sink.paused:
            self.resume()

    def bound(self, hold: Callable[[int], bool]) -> None:
        """Hold nothing: no event is ever incomplete."""

    def end(self, reason: str) -> None:
        """End the stream with an event that gives the reason; only the first reason counts."""
        if self._reason is None and not self._released:
            self._reason = reason
            if self._sink is not DETACHED:
                self._finish(reason)

    def _finish(self, reason: str) -> None:
        self._sink.send_event(events.end(reason))
        self.listeners.count("end")
        self.release(reason)

    def release(self, reason: str) -> None:
        """Count the end, and end the browser's side; the second call does nothing."""
        if not self._released:
            self._released = True
            self._dirty = None
            sink, self._sink = self._sink, DETACHED
            self.listeners.remove(self, self._reason or reason)
            sink.finish_stream()  # a task that pulls events would wait for ever
