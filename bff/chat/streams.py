"""The open chat streams of one process: how many there may be, and what ends them.

A `ChatStream` stands between upstream's connection and the browser's: it filters what one brings,
and writes it to the other at once. It reads upstream no faster than the browser reads. It ends
cleanly when `end` is called: at expiry, revocation, a removed key, a stricter policy and at the end
of the process. A clean end loses nothing, because browsers resume after the last record.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cachetools import TTLCache

from bff import metrics
from bff.chat.records import RecordFilter
from bff.errors import Refused, UpstreamError
from bff.response import DETACHED, EventSink
from bff.stream_registry import StreamRegistry
from bff.telemetry import Telemetry

UNREADABLE_SECONDS: Final = 60.0
"""Seconds for which the gateway remembers where a stream could not be read."""
_MAX_UNREADABLE: Final = 10_000
LARGE_EVENTS: Final = 8192
"""Events of this many bytes need room in memory before they are written. Smaller ones count only if
they stay in the buffer of the connection."""
ROOM_SECONDS: Final = 10.0
"""Seconds for which a stream waits for room in memory; upstream is not read meanwhile."""
_ROOM_CHECK_SECONDS: Final = 0.1


class Upstream(Protocol):
    """Upstream's side of a stream; see `bff.upstream.connection.Stream`."""

    def attach(self, reader: "ChatStream") -> None:
        """Give the body to *reader*."""

    def pause(self) -> None:
        """Hold what arrives from now on."""

    def resume(self) -> None:
        """Give the reader what was held, and what arrives from now on."""

    def abort(self) -> None:
        """Close the connection."""


@dataclass(eq=False, slots=True, kw_only=True)
class ChatStream:
    """One stream, from its reservation to its end. It has no task: one side's bytes call the other.

    Attributes:
        caller: the key under which its caller is counted.
        address: the key of its browser's address.
        session: environment and id.
        grounds: what it was allowed by; `Streams.check` passes it on.
        cut: whether upstream's side ended before its body did. Then the browser's side ends the
            same way, because old transports take a clean end for the end of the answer.
        has_first: whether a record has passed.
        passed: called after records have passed, with the number of the last message whose turn
            they ended; see `RecordFilter.answered`.
    """

    streams: "Streams"
    caller: Hashable
    address: str
    session: tuple[str, str]
    grounds: Any
    records: RecordFilter
    began: float
    cut: bool = False
    reserves: bool = field(default=True, init=False)
    has_first: bool = field(default=False, init=False)
    passed: Callable[[int], None] = field(default=lambda _: None)
    _noted: int = field(init=False)
    """The cursor when `passed` was called last."""
    _hold: Callable[[int], bool] = field(default=lambda _: True)
    _held: int = 0
    """Bytes that `_hold` counts."""
    _upstream: Upstream | None = None
    _sink: EventSink = DETACHED
    _room: asyncio.TimerHandle | None = None
    """Looks for room in memory, while events wait for it."""
    _reason: str | None = None
    _released: bool = False

    def __post_init__(self) -> None:
        self._noted = self.records.cursor

    # -- its two sides

    def connect(self, upstream: Upstream) -> None:
        """Take over upstream's side."""
        self._upstream = upstream
        if self._reason is not None or self._released:
            upstream.abort()

    def bound(self, hold: Callable[[int], bool]) -> None:
        """Let *hold* count the bytes of events in memory; it returns False if there is no room."""
        self._hold = hold

    def attach(self, sink: EventSink) -> None:
        """Write what upstream sends to *sink*."""
        if self._released:
            sink.finish_stream()
            return
        self._sink = sink
        if self._reason is not None:
            self._finish(self._reason)
            return
        assert self._upstream is not None  # noqa: S101  `connect` comes first
        self._upstream.attach(self)

    # -- events

    def receive(self, data: bytes) -> None:
        """Take bytes of upstream's side, and write the events that they complete."""
        if self._released:
            return
        try:
            self._write(self.records.feed(data))
        except Exception as exc:  # noqa: BLE001  it is not upstream's connection that failed
            self.streams.note_failed(exc)
            self.cut = True
            self._finish("failed")

    def _write(self, events: bytes, waited: float = 0.0) -> None:
        records = self.records
        size = records.buffered + (len(events) if len(events) >= LARGE_EVENTS else 0)
        if size != self._held:
            if not self._hold(size):
                self._wait_for_room(events, waited)
                return
            self._held = size
        if events:
            if not self.has_first and records.records:
                self.streams.observe_first(self)
            if records.cursor != self._noted:  # a ping tells nothing of the agent
                self._noted = records.cursor
                self.passed(records.answered)
            self._sink.send_event(events)
        if records.failed:
            self.streams.note_unreadable(self)
            self._finish("unreadable")
        elif self._sink.paused:
            self._pause()
        elif size > records.buffered:
            self._release_written()

    def _release_written(self) -> None:
        """Count no longer what is written."""
        if self._hold(self.records.buffered):
            self._held = self.records.buffered

    def _pause(self) -> None:
        if self._upstream is not None:
            self._upstream.pause()

    def _resume(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    def resume(self) -> None:
        """Go on: the browser reads again."""
        if self._room is None and not self._released:
            self._release_written()
            self._resume()

    def _wait_for_room(self, events: bytes, waited: float) -> None:
        """Write *events* when there is room in memory; without any, end."""
        if waited >= ROOM_SECONDS:
            self._finish("overloaded")
            return
        self._pause()
        loop = asyncio.get_running_loop()
        self._room = loop.call_later(_ROOM_CHECK_SECONDS, self._look_for_room, events, waited)

    def _look_for_room(self, events: bytes, waited: float) -> None:
        self._room = None
        self._write(events, waited + _ROOM_CHECK_SECONDS)
        if self._room is None and not self._sink.paused:
            self._resume()

    # -- its end

    def ended(self, error: UpstreamError | None) -> None:
        """End as upstream's side has ended."""
        if not self._released:
            self.cut = error is not None
            self._finish("upstream")

    def end(self, reason: str) -> None:
        """End the stream cleanly; only the first reason counts."""
        if self._reason is None and not self._released:
            self._reason = reason
            if self._sink is not DETACHED:
                self._finish(reason)
            elif self._upstream is not None:
                self._upstream.abort()

    def _finish(self, reason: str) -> None:
        sink = self._sink
        self.release(reason)
        sink.finish_stream()

    def release(self, reason: str) -> None:
        """Close upstream's side, and count the end; the second call does nothing."""
        if not self._released:
            self._released, self._sink = True, DETACHED
            if self._room is not None:
                self._room.cancel()
            if self._upstream is not None:
                self._upstream.abort()
            self.streams.remove(self, self._reason or reason)


class Streams(StreamRegistry[ChatStream]):
    """Counts and ends the streams of chats.

    Args:
        telemetry: counts their ends.
        clock: seconds on the clock that never jumps.
    """

    ends, seconds, kind = metrics.STREAM_ENDS, metrics.STREAM_SECONDS, "chat"

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float]) -> None:
        super().__init__(telemetry, clock)
        self._unreadable: TTLCache[tuple[str, str, int], None] = TTLCache(
            _MAX_UNREADABLE, UNREADABLE_SECONDS, timer=clock
        )

    def refuse_unreadable(self, session: tuple[str, str], cursor: int) -> None:
        """Refuse to resume a stream at a place that could not be read just now.

        Raises:
            Refused: ``stream_unreadable``, at which the official transport ends the turn. It
                resumes after the event ``error`` for ever.
        """
        if (*session, cursor) in self._unreadable:
            raise Refused("stream_unreadable")

    def observe_first(self, stream: ChatStream) -> None:
        """Measure the time to the first record."""
        stream.has_first = True
        self._telemetry.observe(metrics.STREAM_FIRST_SECONDS, self._clock() - stream.began)

    def note_failed(self, exc: Exception) -> None:
        """Log that the gateway itself failed."""
        self._telemetry.exception("stream_failed", exc)

    def note_unreadable(self, stream: ChatStream) -> None:
        """Remember the place where a stream could not be read further."""
        self._unreadable[*stream.session, stream.records.cursor] = None
