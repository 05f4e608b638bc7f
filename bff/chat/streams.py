"""The open chat streams of one process: how many there may be, and what ends them.

An `ChatStream` stands between upstream's connection and the browser's. Its reader, the server,
iterates over it, and gets the events that the browser may see as they come. The stream ends cleanly
when `end` is called, whatever it waits for: at expiry, revocation, a removed key, a stricter policy
and at the end of the process. A clean end loses nothing, because browsers resume after the last
record.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cachetools import TTLCache

from bff import metrics
from bff.chat.records import RecordFilter
from bff.errors import Refused, UpstreamError
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
    """Upstream's side of a stream: an iterator over the parts of its body."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the parts; raises `UpstreamError` if the body is cut."""

    def abort(self) -> None:
        """Close the connection; the iteration ends with an `UpstreamError`."""


@dataclass(eq=False, slots=True, kw_only=True)
class ChatStream:
    """One stream, from its reservation to its end.

    Attributes:
        caller: the key under which its caller is counted.
        address: the key of its browser's address.
        session: environment and id.
        grounds: what it was allowed by; `Streams.check` passes it on.
        cut: whether upstream's side ended before its body did. Then the browser's side ends the
            same way, because old transports take a clean end for the end of the answer.
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
    passed: Callable[[int], None] = field(default=lambda _: None)
    _hold: Callable[[int], bool] = field(default=lambda _: True)
    _upstream: Upstream | None = None
    _reason: str | None = None
    _released: bool = False

    def connect(self, upstream: Upstream) -> None:
        """Take over upstream's side."""
        self._upstream = upstream
        if self._reason is not None:
            upstream.abort()

    def bound(self, hold: Callable[[int], bool]) -> None:
        """Let *hold* count the bytes of events in memory; it returns False if there is no room."""
        self._hold = hold

    def end(self, reason: str) -> None:
        """End the stream cleanly; only the first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._upstream is not None:
                self._upstream.abort()

    def release(self, reason: str) -> None:
        """Close upstream's side, and count the end; the second call does nothing."""
        if not self._released:
            self._released = True
            if self._upstream is not None:
                self._upstream.abort()
            self.streams.remove(self, self._reason or reason)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events for the browser as they come."""
        reason = "browser"  # the reason, unless the gateway ends the stream
        try:
            assert self._upstream is not None  # noqa: S101  `connect` comes first
            records, held = self.records, 0
            async for part in self._upstream:
                if self._reason is not None:
                    break
                events = records.feed(part)
                size = records.buffered + (len(events) if len(events) >= LARGE_EVENTS else 0)
                if size != held and not await self._reserve(size):
                    reason = "overloaded"
                    return
                held = size
                if events:
                    if self.streams.is_first(self):
                        self.streams.observe_first(self)
                    self.passed(self.records.answered)
                    yield events
                if records.failed:
                    self.streams.note_unreadable(self)
                    reason = "unreadable"
                    return
                if held > records.buffered:  # the events are written
                    held = records.buffered
                    self._hold(held)
            reason = "upstream"
        except UpstreamError:
            reason = "upstream"
            self.cut = self._reason is None
        except Exception:
            reason = "failed"
            raise
        finally:
            self.release(reason)

    async def _reserve(self, size: int) -> bool:
        """Count bytes in memory; without room, wait for it. False if none came."""
        waited = 0.0
        while not self._hold(size):
            if waited >= ROOM_SECONDS or self._reason is not None:
                return False
            await asyncio.sleep(_ROOM_CHECK_SECONDS)
            waited += _ROOM_CHECK_SECONDS
        return True


class Streams(StreamRegistry[ChatStream]):
    """Counts and ends the streams of chats.

    Args:
        telemetry: counts their ends.
        clock: seconds on the clock that never jumps.
    """

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float]) -> None:
        super().__init__(
            telemetry,
            clock,
            ends=metrics.STREAM_ENDS,
            seconds=metrics.STREAM_SECONDS,
            kind="chat",
        )
        self._waiting_first: set[ChatStream] = set()
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

    def add(self, stream: ChatStream) -> None:
        """Count a stream; its `release` counts its end."""
        super().add(stream)
        self._waiting_first.add(stream)

    def remove(self, stream: ChatStream, reason: str) -> None:
        """Count the end of a stream."""
        self._waiting_first.discard(stream)
        super().remove(stream, reason)

    def is_first(self, stream: ChatStream) -> bool:
        """Whether the first record of a stream has just been passed on."""
        return stream.records.records > 0 and stream in self._waiting_first

    def observe_first(self, stream: ChatStream) -> None:
        """Measure the time to the first record."""
        self._waiting_first.discard(stream)
        self._telemetry.observe(metrics.STREAM_FIRST_SECONDS, self._clock() - stream.began)

    def note_unreadable(self, stream: ChatStream) -> None:
        """Remember the place where a stream could not be read further."""
        self._unreadable[*stream.session, stream.records.cursor] = None
