"""The open streams of one process: how many there may be, what ends them, and how a drain ends all.

Chat streams and listeners are streams of different kinds, each with a registry of its own.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from bff.errors import Refused
from bff.telemetry import Telemetry

ADDRESS_SHARE: Final = 4
"""One address may have this part (a quarter) of the streams of a process."""
CHECK_SECONDS: Final = 0.5
"""Seconds between two checks of all streams: what the process has learned ends them in a second."""
CHECKED_AT_ONCE: Final = 200
"""Streams that are checked before other work gets its turn."""
_ALL_IN_USE: Final = "All streams of the gateway are in use; retry shortly"
_SPREAD_STEPS: Final = 50
"""Steps in which the streams of a process that stops are ended."""
LATE_SECONDS: Final = 5.5
"""Seconds after the begin of a drain until streams that were opened during it end. Until then the
process listens, and a proxy that counts connections sends it all new streams: it has the fewest."""
_LATE_SPREAD: Final = 1.5
"""Seconds over which the ends of those streams are spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many streams there may be in this process."""

    streams: int
    streams_per_caller: int


class CountedStream(Protocol):
    """A stream that is counted."""

    @property
    def caller(self) -> Hashable:
        """The key under which its caller is counted."""

    @property
    def address(self) -> str:
        """The key of its browser's address."""

    @property
    def grounds(self) -> Any:
        """The facts that allowed it; `StreamRegistry.check` passes them on."""

    @property
    def began(self) -> float:
        """When it was opened."""

    def end(self, reason: str) -> None:
        """End it cleanly; only the first reason counts."""


StreamT = TypeVar("StreamT", bound=CountedStream)
KeyT = TypeVar("KeyT", bound=Hashable)


class StreamRegistry(Generic[StreamT]):
    """Counts and ends streams of one kind, which a subclass names.

    Args:
        telemetry: counts their ends.
        clock: seconds on the clock that never jumps.
    """

    ends: ClassVar[str]
    """The counter of their ends, by reason."""
    seconds: ClassVar[str]
    """The histogram of their durations."""
    kind: ClassVar[str]
    """Their name in the log."""

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float]) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._open: dict[StreamT, None] = {}
        self._by_caller: Counter[Hashable] = Counter()
        self._by_address: Counter[str] = Counter()
        self._drained = 0.0
        """When the streams end that are opened while others end; 0 before a drain."""
        self.is_memory_full: Callable[[], bool] = lambda: False
        """Tells whether connections hold all bytes that they may; the server sets it."""

    def __len__(self) -> int:
        return len(self._open)

    def refuse(
        self, bounds: Bounds, caller: Hashable, address: str, *, is_proxy: bool = False
    ) -> None:
        """Refuse a stream for which there is no room.

        Raises:
            Refused: ``overloaded`` or ``too_many_streams``.
        """
        if len(self._open) >= bounds.streams:
            raise Refused("overloaded", _ALL_IN_USE, retry_after=1.0)
        if self.is_memory_full():
            raise Refused("overloaded", retry_after=1.0)
        share = max(1, bounds.streams // ADDRESS_SHARE)
        if self._by_caller[caller] >= bounds.streams_per_caller or (
            self._by_address[address] >= share and not is_proxy
        ):
            raise Refused("too_many_streams", retry_after=1.0)

    def add(self, stream: StreamT) -> None:
        """Count a stream; its release counts its end."""
        self._open[stream] = None
        self._by_caller[stream.caller] += 1
        self._by_address[stream.address] += 1
        if self._drained:
            # After a 503 a plain EventSource would not connect again, after a clean end it does.
            step = len(self._open) % _SPREAD_STEPS / _SPREAD_STEPS
            pause = self._drained + step * _LATE_SPREAD - self._clock()
            asyncio.get_running_loop().call_later(max(0.0, pause), stream.end, "shutdown")

    def remove(self, stream: StreamT, reason: str) -> None:
        """Count the end of a stream."""
        del self._open[stream]
        _count_down(self._by_caller, stream.caller)
        _count_down(self._by_address, stream.address)
        now = self._clock()
        seconds = now - stream.began
        self._telemetry.count(self.ends, reason)
        self._telemetry.observe(self.seconds, seconds)
        # Bounded, because thousands may end at once; the log never waits.
        self._telemetry.often(
            "stream_ended", now, kind=self.kind, reason=reason, seconds=round(seconds, 3)
        )

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
        """End all streams, spread over *seconds*: reconnects come spread. New ones end later."""
        self._drained = self._clock() + LATE_SECONDS
        waiting = deque(self._open)
        pause = seconds / _SPREAD_STEPS
        for step in range(_SPREAD_STEPS, 0, -1):
            if not waiting:
                break  # none is left, so nothing keeps the process
            for _ in range(-(-len(waiting) // step)):
                waiting.popleft().end("shutdown")
            await asyncio.sleep(pause)


def _count_down(counter: Counter[KeyT], key: KeyT) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
