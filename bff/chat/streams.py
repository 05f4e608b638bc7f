"""The open chat streams of one process: how many there may be, and what ends them.

An `ChatStream` stands between upstream's connection and the browser's. Its reader, the server,
iterates over it, and gets the events that the browser may see as they come. The stream ends cleanly
when `end` is called, whatever it waits for: at expiry, revocation, a removed key, a stricter policy
and at the end of the process. A clean end loses nothing, because browsers resume after the last
record.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from cachetools import TTLCache

from bff import metrics
from bff.chat.records import RecordFilter
from bff.errors import Refused, UpstreamError
from bff.telemetry import Telemetry

ADDRESS_SHARE: Final = 4
"""One address may have this part (a quarter) of the streams of a process."""
CHECK_SECONDS: Final = 0.5
"""Seconds between two checks of all streams: what the process has learned ends them in a second."""
CHECKED_AT_ONCE: Final = 200
"""Streams that are checked before other work gets its turn."""
UNREADABLE_SECONDS: Final = 60.0
"""Seconds for which the gateway remembers where a stream could not be read."""
_MAX_UNREADABLE: Final = 10_000
_SPREAD_STEPS: Final = 50
"""Steps in which the streams of a process that stops are ended."""


class Upstream(Protocol):
    """Upstream's side of a stream: an iterator over the parts of its body."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the parts; raises `UpstreamError` if the body is cut."""

    def abort(self) -> None:
        """Close the connection; the iteration ends with an `UpstreamError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many streams there may be in this process."""

    streams: int
    streams_per_caller: int


@dataclass(eq=False, slots=True, kw_only=True)
class ChatStream:
    """One stream, from its reservation to its end.

    Attributes:
        caller: the key under which its caller is counted.
        address: the key of its browser's address.
        session: environment and id.
        grounds: what it was allowed by; `Streams.check` passes it on.
    """

    streams: "Streams"
    caller: Hashable
    address: str
    session: tuple[str, str]
    grounds: Any
    records: RecordFilter
    began: float
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
        """Let *hold* count the bytes of an unfinished event; it returns False if it has no room."""
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
            feed, held = self.records.feed, 0
            async for part in self._upstream:
                if self._reason is not None:
                    break
                events = feed(part)
                if events:
                    if self.streams.is_first(self):
                        self.streams.observe_first(self)
                    yield events
                if self.records.failed:
                    self.streams.note_unreadable(self)
                    reason = "unreadable"
                    return
                if self.records.buffered != held:
                    held = self.records.buffered
                    if not self._hold(held):
                        reason = "overloaded"
                        return
            reason = "upstream"
        except UpstreamError:
            reason = "upstream"
        except Exception:
            reason = "failed"
            raise
        finally:
            self.release(reason)


class Streams:
    """Counts and ends streams.

    Args:
        telemetry: counts their ends.
        clock: seconds on the clock that never jumps.
    """

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float]) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._open: dict[ChatStream, None] = {}
        self._by_caller: Counter[Hashable] = Counter()
        self._by_address: Counter[str] = Counter()
        self._waiting_first: set[ChatStream] = set()
        self._unreadable: TTLCache[tuple[str, str, int], None] = TTLCache(
            _MAX_UNREADABLE, UNREADABLE_SECONDS, timer=clock
        )
        self._draining = False

    def __len__(self) -> int:
        return len(self._open)

    # -- the beginning

    def refuse(
        self, bounds: Bounds, caller: Hashable, address: str, *, is_proxy: bool = False
    ) -> None:
        """Refuse a stream for which there is no room.

        Raises:
            Refused: ``overloaded`` or ``too_many_streams``.
        """
        if self._draining or len(self._open) >= bounds.streams:
            raise Refused("overloaded", retry_after=1.0)
        share = max(1, bounds.streams // ADDRESS_SHARE)
        if self._by_caller[caller] >= bounds.streams_per_caller or (
            self._by_address[address] >= share and not is_proxy
        ):
            raise Refused("too_many_streams", retry_after=1.0)

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
        self._open[stream] = None
        self._by_caller[stream.caller] += 1
        self._by_address[stream.address] += 1
        self._waiting_first.add(stream)

    def is_first(self, stream: ChatStream) -> bool:
        """Whether the first record of a stream has just been passed on."""
        return stream.records.records > 0 and stream in self._waiting_first

    def observe_first(self, stream: ChatStream) -> None:
        """Measure the time to the first record."""
        self._waiting_first.discard(stream)
        self._telemetry.observe(metrics.STREAM_FIRST_SECONDS, self._clock() - stream.began)

    # -- the end

    def remove(self, stream: ChatStream, reason: str) -> None:
        """Count the end of a stream."""
        del self._open[stream]
        self._waiting_first.discard(stream)
        _count_down(self._by_caller, stream.caller)
        _count_down(self._by_address, stream.address)
        self._telemetry.count(metrics.STREAM_ENDS, reason)
        self._telemetry.observe(metrics.STREAM_SECONDS, self._clock() - stream.began)

    def note_unreadable(self, stream: ChatStream) -> None:
        """Remember the place where a stream could not be read further."""
        self._unreadable[*stream.session, stream.records.cursor] = None

    def check(self, allowed: Callable[[Any], str | None]) -> Iterator[None]:
        """End the streams for which *allowed* returns a reason; yields between parts of the work.

        *allowed* gets the grounds of a stream, and returns None if they still hold.
        """
        for number, stream in enumerate(list(self._open), start=1):
            if stream in self._open:
                reason = allowed(stream.grounds)
                if reason is not None:
                    stream.end(reason)
            if number % CHECKED_AT_ONCE == 0:
                yield

    async def drain(self, seconds: float) -> None:
        """Refuse new streams, and end all others spread over *seconds*: reconnects come spread."""
        self._draining = True
        waiting = deque(self._open)
        pause = seconds / _SPREAD_STEPS
        for step in range(_SPREAD_STEPS, 0, -1):
            if not waiting:
                break  # none is left, so nothing keeps the process
            for _ in range(-(-len(waiting) // step)):
                waiting.popleft().end("shutdown")
            await asyncio.sleep(pause)
        for stream in list(self._open):
            stream.end("shutdown")


KeyT = TypeVar("KeyT", bound=Hashable)


def _count_down(counter: Counter[KeyT], key: KeyT) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
